"""The command line as a user meets it: what it prints, where, and how it ends."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_lfm2vl import Lfm2VlConfig, __version__, load
from mlx_lfm2vl.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
MODEL = GOLDEN / "gen25"
PICTURE = GOLDEN / "pictures" / "landscape.png"
LARGE = GOLDEN / "pictures" / "large.png"
MODULE = [sys.executable, "-m", "mlx_lfm2vl"]
SCRIPT = Path(sys.executable).parent / "mlx-lfm2vl"


@pytest.fixture
def cli(capfd):
    """Runs the program in this process; gives exit code, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(cli):
    """Runs the program, which must print nothing but one error line and exit with 2; gives that line."""

    def run(*argv: object) -> str:
        code, out, err = cli(*argv)
        assert (code, out) == (2, ""), err
        *before, last = err.splitlines()
        assert last.startswith("mlx-lfm2vl: error: ")
        assert all(line.startswith("mlx-lfm2vl: ") for line in before) and "Traceback" not in err
        return last

    return run


def process(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def generate(*words: object, model: Path = MODEL) -> tuple[object, ...]:
    return ("generate", "--model", model, "--max-tokens", 4, *words)


@pytest.fixture
def broken(tmp_path):
    """A copy of a small checkpoint to damage."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


# --- what it prints ---------------------------------------------------------------------------------------------------


def test_every_way_to_start_it_prints_the_same(tmp_path):
    words = ["--model", MODEL, "--image", PICTURE, "--prompt", "What is this?", "--max-tokens", "6"]
    starts: list[list[object]] = [[*MODULE, "generate"], [sys.executable, ROOT / "generate.py"]]
    if SCRIPT.exists():  # installed beside this Python
        starts.append([SCRIPT, "generate"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answers = [process(*start, *words, cwd=tmp_path, env=environment) for start in starts]
    assert [a.returncode for a in answers] == [0] * len(starts), answers[0].stderr
    assert len({a.stdout for a in answers}) == 1
    assert answers[0].stdout.strip() and answers[0].stdout.endswith("\n")
    assert all(a.stderr == "" for a in answers)


def test_both_scripts_know_their_command(tmp_path):
    for name in ("generate", "convert"):
        done = process(sys.executable, ROOT / f"{name}.py", "--help", cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: mlx-lfm2vl {name} ")


def test_the_answer_is_that_of_the_library(cli):
    from mlx_lfm2vl import GenerationOptions
    from mlx_lfm2vl import generate as library

    model, processor = load(MODEL)
    expected = library(model, processor, "Why?", [PICTURE], options=GenerationOptions(max_tokens=4))
    code, out, err = cli(*generate("--image", PICTURE, "--prompt", "Why?"))
    assert (code, out, err) == (0, expected + "\n", "")


def test_statistics_go_to_stderr(cli):
    code, out, err = cli(*generate("--image", PICTURE, "--verbose", "--max-tokens", 3))
    assert code == 0 and "tokens/s" not in out
    assert re.search(r"prompt \d+ tokens \(\d+ of pictures and videos\) at [\d.]+ tokens/s", err)
    assert re.search(r"answer 3 tokens at [\d.]+ tokens/s, the first after [\d.]+ s", err)
    assert re.search(r"peak memory 0\.\d+ GB", err)


@pytest.mark.backends("numpy")
def test_verbose_says_what_became_of_the_weights_and_what_computes(cli):
    from mlx_lfm2vl import demo

    code, _, err = cli("generate", "--model", str(demo.path()), "--prompt", "Hello", "--verbose", "--max-tokens", 1)
    assert code == 0
    assert "the bfloat16 weights were made float32, in which the CPU is fastest (0.013 GB)" in err
    assert "computing on the CPU by NumPy (backend numpy" in err


def picture_tokens(cli, *words: object) -> int:
    code, _, err = cli(*generate("--max-tokens", 1, "--verbose", *words))
    assert code == 0, err
    return int(re.findall(r"\((\d+) of pictures and videos\)", err)[0])


def test_picture_options_change_what_the_model_sees(cli):
    tiled = picture_tokens(cli, "--image", LARGE)
    assert tiled == picture_tokens(cli, "--image", LARGE, "--tiling") == 2 * 256 + 242
    assert picture_tokens(cli, "--image", LARGE, "--no-tiling") == 242
    assert picture_tokens(cli, "--image", LARGE, "--no-tiling", "--max-image-tokens", 100) <= 100
    small = GOLDEN / "pictures" / "small.png"
    least = picture_tokens(cli, "--image", small, "--min-image-tokens", 16)
    assert 16 <= least < picture_tokens(cli, "--image", small)
    assert picture_tokens(cli, "--image", LARGE, "--image", small) == tiled + picture_tokens(cli, "--image", small)
    assert picture_tokens(cli, "--prompt", "No picture here.") == 0


def test_a_seed_makes_sampling_repeatable_and_top_k_1_is_greedy(cli):
    sampled = [cli(*generate("--prompt", "Tell me.", "--temp", 1.5, "--seed", seed))[1] for seed in (3, 3, 4)]
    assert sampled[0] == sampled[1] != sampled[2]
    greedy = cli(*generate("--prompt", "Tell me."))[1]
    assert cli(*generate("--prompt", "Tell me.", "--temp", 1.5, "--top-k", 1))[1] == greedy
    assert cli(*generate("--prompt", "Tell me.", "--temp", 0, "--top-p", 0.5, "--min-p", 0.1))[1] == greedy


def test_system_prompt_and_repetition_penalty_are_passed_on(cli):
    from mlx_lfm2vl import GenerationOptions
    from mlx_lfm2vl import generate as library

    model, processor = load(MODEL)
    plain, brief, rarely = (
        library(
            model, processor, "one two three", system=system, options=GenerationOptions(12, repetition_penalty=penalty)
        )
        for system, penalty in ((None, None), ("Be brief.", None), (None, 0.5))
    )
    assert len({plain, brief, rarely}) == 3
    words = ("--prompt", "one two three", "--max-tokens", 12)
    assert cli(*generate(*words, "--system", "Be brief."))[1] == brief + "\n"
    assert cli(*generate(*words, "--repetition-penalty", 0.5))[1] == rarely + "\n"


def test_a_switched_off_tiling_is_said_on_stderr_unless_chosen(cli, broken):
    file = broken / "processor_config.json"
    data = json.loads(file.read_text())
    data["image_processor"]["do_image_splitting"] = False
    file.write_text(json.dumps(data))
    code, out, err = cli(*generate("--prompt", "Hi", model=broken))
    assert code == 0 and "do_image_splitting: false" in err and "--no-tiling" in err
    assert len(err.splitlines()) == 1 and "tiling" not in out
    assert cli(*generate("--prompt", "Hi", "--no-tiling", model=broken))[2] == ""


def test_pictures_may_be_data_uris(cli):
    import base64

    uri = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    assert cli(*generate("--image", uri))[1] == cli(*generate("--image", PICTURE))[1]


def test_help_names_every_option_and_its_default(cli):
    code, out, _ = cli("generate", "--help")
    assert code == 0
    for option in ("--image", "--prompt", "--max-tokens", "--temp", "--seed", "--no-tiling", "--revision", "--verbose"):
        assert option in out
    assert "default: 512" in out
    code, out, _ = cli("--help")
    assert code == 0 and all(f"    {name} " in out for name in COMMANDS)


def test_help_answers_at_once():
    """In processor time, so that a busy machine does not matter."""
    times = []
    for _ in range(5):
        before = os.times()
        assert process(*MODULE, "generate", "--help", cwd=ROOT).returncode == 0
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.3


def test_version(cli):
    assert cli("--version") == (0, f"mlx-lfm2vl {__version__}\n", "")


# --- how it ends ------------------------------------------------------------------------------------------------------


def begun(model: Path, **options: object) -> subprocess.Popen[bytes]:
    """A long answer of which something has been printed."""
    words = [*MODULE, "generate", "--model", model, "--prompt", "Tell me.", "--temp", "3", "--max-tokens", "30000"]
    child = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, **options)  # type: ignore[call-overload]
    assert child.stdout.read(8)
    return child


@pytest.mark.parametrize("attempt", range(3))
def test_ctrl_c_ends_the_line_and_exits_with_130(endless, attempt):
    child = begun(endless)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, b"")
    assert out.endswith(b"\n")


@pytest.mark.parametrize("module", ["mlx_lfm2vl.cli", "mlx_lfm2vl.cli.batch", "datetime", "array"])
def test_ctrl_c_while_the_program_is_imported_shows_no_traceback(module):
    code = f"""
import importlib.abc, os, signal, sys
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from mlx_lfm2vl.__main__ import main
sys.exit(main(["generate"]))
"""
    done = process(sys.executable, "-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_error_that_nobody_reads_still_exits_with_2():
    reader, writer = os.pipe()
    os.close(reader)
    words = [*MODULE, "generate", "--image", "absent.png", "--prompt", "Hi"]
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, stderr=writer, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_closed_pipe_is_no_traceback(endless):
    child = begun(endless)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert (child.wait(timeout=60), err) == (141, b"")


def test_a_terminal_that_lacks_a_character_does_not_stop_the_answer():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process(*MODULE, *generate("--prompt", "Hi", "--max-tokens", 30), cwd=ROOT, env=environment)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.isascii()


# --- what the user can put right: one line, exit code 2 ---------------------------------------------------------------


def test_errors_of_a_real_process_are_one_line_without_traceback(tmp_path):
    done = process(*MODULE, *generate("--image", tmp_path / "no.png"), cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"mlx-lfm2vl: error: {tmp_path / 'no.png'}: no such picture\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["frobnicate"], r"'frobnicate'.*generate.*convert"),
        (["generate", "--max-tokens", "0"], r"--max-tokens/-m: '0' is not a whole number of at least 1"),
        (["generate", "--max-tokens", "many"], r"--max-tokens/-m: 'many' is not a whole number"),
        (["generate", "--temp", "-1"], r"--temp/--temperature: '-1' is not a number of at least 0"),
        (["generate", "--temp", "nan"], r"--temp/--temperature: 'nan' is not a number"),
        (
            ["generate", "--prompt", "x", "--temp", "1e9"],
            r"argument --temp/--temperature: '1e9' is not a number of at least 0 and at most 100",
        ),
        (["generate", "--top-p", "1.5"], r"--top-p: '1\.5' is not a number of at least 0 and at most 1"),
        (["generate", "--top-p", "-1"], r"--top-p: '-1' is not a number of at least 0"),
        (["generate", "--min-p", "2"], r"--min-p: '2' is not a number of at least 0 and at most 1"),
        (["generate", "--top-k", "-3"], r"--top-k: '-3' is not a whole number of at least 0"),
        (["generate", "--repetition-penalty", "0"], r"--repetition-penalty: '0' is not a number of at least 0.01"),
        (["generate", "--seed", "1.5"], r"--seed: '1\.5' is not a whole number"),
        (["generate", "--max-image-tokens", "0"], r"--max-image-tokens: '0'"),
        (["generate", "--stop", ""], r"argument --stop: is empty; leave it out"),
        (["generate", "--logit-bias", "5"], r"--logit-bias: '5' is no ID=BIAS, such as 42=-5"),
        (
            ["generate", "--prompt", "x", "--model", str(MODEL), "--logit-bias", "999999=1"],
            r"error: --logit-bias names token 999999",
        ),
        (
            ["generate", "--prompt", "x", "--model", str(MODEL), "--max-image-tokens", "1", "--min-image-tokens", "50"],
            r"error: --min-image-tokens is 50, expected at most --max-image-tokens 1$",
        ),
        (["generate", "--prompt", "x", "--json-schema", "[1]"], r"is a list, expected a schema"),
        (["generate", "--prompt", "x", "--json-schema", '"a"'], r'is "a", expected a schema'),
        (["generate", "--prompt", "x", "--json-schema", "null"], r"is null, expected a schema"),
        (["generate", "--unheard-of"], r"unrecognized arguments: --unheard-of \(see `mlx-lfm2vl generate --help`\)"),
        (["generate", "--max-tok", "3"], r"unrecognized arguments: --max-tok 3"),
        (["generate", "--image"], r"--image: expected at least one argument"),
        (["generate"], r"nothing to answer: give --image, --prompt or both"),
        (["generate", "--model", "no/such/folder", "--prompt", "x"], r"no/such/folder: no such folder"),
        (["generate", "--model", "", "--prompt", "x"], r"name is empty"),
        (["generate", "--image", "", "--model", str(MODEL)], r"path is empty"),
        (["generate", "--image", str(GOLDEN)], r"is a directory, not a picture"),
        (["generate", "--image", "ftp://example.org/x.png"], r"only http, https, file and data"),
        (["generate", "--image", "data:image/png;base64,@@@"], r"is not base64"),
        (["generate", "--image", "http://127.0.0.1:9/x.png"], r"private address"),
        (["convert"], r"required: --hf-path"),
        (["convert", "--hf-path", "x", "--q-bits", "8"], r"--q-bits 8 says how to quantise; add -q"),
        (["convert", "--hf-path", "x", "--q-group-size", "32"], r"--q-group-size 32 says how to quantise; add -q"),
        (["convert", "--hf-path", "x", "-q", "--q-bits", "7"], r"--q-bits: invalid choice: 7"),
        (["convert", "--hf-path", "x", "-q", "--q-group-size", "48"], r"--q-group-size: invalid choice: 48"),
        (["convert", "--hf-path", "x", "--dtype", "int8"], r"--dtype: invalid choice: 'int8'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_arguments(refused, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(says, refused(*words))
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_called_like_an_option_stays_as_it_is(refused, tmp_path):
    said = refused(
        "lora", "--model", "demo", "--data", tmp_path / "batch_size" / "train.jsonl", "--output", tmp_path / "a"
    )
    assert "batch_size/train.jsonl: " in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_own(cli, command):
    assert cli("help", command) == cli(command, "--help")
    assert cli("help") == cli("--help") and cli("help")[0] == 0


def test_without_a_command_the_help_is_shown(cli):
    code, out, err = cli()
    assert code == 2 and out == "" and "generate" in err and "convert" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"This is no picture.", "not a picture"),
        (PICTURE.read_bytes()[:300], "damaged or truncated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
)
def test_files_that_are_no_pictures(refused, tmp_path, content, says):
    file = tmp_path / "a picture.png"
    file.write_bytes(content)
    line = refused(*generate("--image", file))
    assert says in line and "a picture.png" in line


def test_a_bad_picture_is_said_before_the_model_is_loaded(refused, broken):
    (broken / "model.safetensors").unlink()
    assert "nowhere.png: no such picture" in refused(*generate("--image", "nowhere.png", model=broken))


@pytest.mark.parametrize("prompt", ["<image> and <image>?", "What is <image>?"])
def test_placeholders_that_are_not_as_many_as_the_pictures(refused, prompt):
    line = refused(*generate("--image", PICTURE, "--prompt", prompt, "--control-tokens"))
    assert "<image>" in line and "1" in line


def test_budgets_that_contradict_each_other(refused):
    line = refused(*generate("--image", PICTURE, "--max-image-tokens", 8, "--min-image-tokens", 9))
    assert "--min-image-tokens" in line and "9" in line and "8" in line


def damage(name: str):
    """One way to damage a model folder; its name is the test's."""

    def edit(folder: Path, file: str, **fields: object) -> None:
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**data, **fields}))

    def truncate(folder: Path, size: int) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:size])

    def without_tensor(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        key = next(name for name in header if name.endswith("embedding_norm.weight"))
        header[f"{key[:-6]}bias"] = header.pop(key)
        new = json.dumps(header).encode().ljust(length)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])

    return {
        "no config": lambda f: (f / "config.json").unlink(),
        "config is no JSON": lambda f: (f / "config.json").write_text("{"),
        "another model": lambda f: edit(f, "config.json", model_type="llava"),
        "nonsense size": lambda f: edit(f, "config.json", projector_hidden_size=-1),
        "another size": lambda f: edit(f, "config.json", projector_hidden_size=96),
        "no weights": lambda f: (f / "model.safetensors").unlink(),
        "empty weights": lambda f: truncate(f, 0),
        "truncated header": lambda f: truncate(f, 500),
        "truncated weights": lambda f: truncate(f, -100),
        "missing tensor": without_tensor,
        "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
        "tokenizer is no JSON": lambda f: (f / "tokenizer.json").write_text("{"),
        "no template": lambda f: (f / "chat_template.jinja").unlink(),
        "template is no jinja": lambda f: (f / "chat_template.jinja").write_text("{% if %}"),
        "nonsense sampling": lambda f: edit(f, "generation_config.json", temperature=-1),
        "nonsense pictures": lambda f: edit(f, "processor_config.json", image_processor={"max_tiles": 0}),
    }[name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no config", "has no config.json"),
        ("config is no JSON", "config.json: cannot be read as JSON"),
        ("another model", "model_type is 'llava'"),
        ("nonsense size", "projector_hidden_size is -1"),
        ("another size", "linear_1"),
        ("no weights", "has no .safetensors file"),
        ("empty weights", "model.safetensors"),
        ("truncated header", "model.safetensors"),
        ("truncated weights", "model.safetensors"),
        ("missing tensor", "embedding_norm.weight"),
        ("no tokenizer", "tokenizer.json"),
        ("tokenizer is no JSON", "tokenizer.json"),
        ("no template", "chat_template.jinja"),
        ("template is no jinja", "chat_template.jinja"),
        ("nonsense sampling", "temperature is -1"),
        ("nonsense pictures", "max_tiles is 0"),
    ],
)
def test_quantization_errord_model_folders(refused, broken, name, says):
    damage(name)(broken)
    assert says in refused(*generate("--image", PICTURE, model=broken))


# --- convert ----------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_converted_model_answers_as_the_original(cli, tmp_path):
    words = ("--image", PICTURE, "--max-tokens", 12)
    code, out, err = cli("convert", "--hf-path", MODEL, "--mlx-path", tmp_path / "out")
    assert (code, out, err) == (0, f"{tmp_path / 'out'}\n", "")
    assert cli(*generate(*words, model=tmp_path / "out")) == cli(*generate(*words))


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (8, 32)])
def test_a_quantised_model_says_so_and_runs(cli, tmp_path, bits, size):
    words = ("-q", "--q-bits", bits, "--q-group-size", size, "--dtype", "float16", "--no-verify")
    code, _, err = cli("convert", "--model", MODEL, "--mlx-path", tmp_path / "out", *words)
    assert code == 0, err
    config = Lfm2VlConfig.from_pretrained(tmp_path / "out")
    assert config.quantization is not None
    assert (config.quantization["bits"], config.quantization["group_size"]) == (bits, size)
    assert config.dtype == "float16"
    code, out, err = cli(*generate("--image", PICTURE, model=tmp_path / "out"))
    assert code == 0 and out.strip() and err == ""


def test_default_target_is_mlx_model_here(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("convert", "--hf-path", MODEL)[:2] == (0, "mlx_model\n")
    assert (tmp_path / "mlx_model" / "config.json").is_file()


def test_an_existing_folder_is_left_alone_unless_told(cli, refused, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    line = refused("convert", "--hf-path", MODEL, "--mlx-path", target)
    assert "exists already" in line and "--overwrite" in line
    assert files(target) == {"mine.txt": b"keep"}
    assert "no model folder" in refused("convert", "--hf-path", MODEL, "--mlx-path", target, "--overwrite")
    assert files(target) == {"mine.txt": b"keep"}
    (target / "config.json").write_text("{}")
    assert cli("convert", "--hf-path", MODEL, "--mlx-path", target, "--overwrite")[0] == 0
    assert "mine.txt" not in files(target) and "config.json" in files(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["no config", "another model", "truncated weights", "missing tensor", "another size"])
def test_a_failed_conversion_leaves_nothing(refused, broken, tmp_path, name):
    damage(name)(broken)
    target = tmp_path / "target" / "out"
    refused("convert", "--hf-path", broken, "--mlx-path", target)
    assert not target.exists()
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["truncated weights", "missing tensor"])
def test_a_failed_conversion_keeps_what_it_would_have_replaced(cli, refused, broken, tmp_path, name):
    target = tmp_path / "out"
    assert cli("convert", "--hf-path", MODEL, "--mlx-path", target)[0] == 0
    before = files(target)
    damage(name)(broken)
    refused("convert", "--hf-path", broken, "--mlx-path", target, "--overwrite")
    assert files(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_target_below_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refused("convert", "--hf-path", MODEL, "--mlx-path", tmp_path / "file" / "out")


def test_the_source_is_never_its_own_target(refused, broken):
    before = files(broken)
    assert "is the source itself" in refused("convert", "--hf-path", broken, "--mlx-path", broken, "--overwrite")
    assert files(broken) == before


def test_what_the_user_should_know_is_said_and_stops_nothing(cli, tmp_path):
    words: tuple[object, ...] = ("-q", "--q-group-size", 32, "--no-verify")
    code, out, err = cli("convert", "--hf-path", MODEL, "--mlx-path", tmp_path / "q", *words)
    assert (code, out) == (0, f"{tmp_path / 'q'}\n")
    assert "8 bits chosen: the model has 0.292 million parameters" in err
    words = ("-q", "--q-bits", 4, "--q-group-size", 32, "--q-override", "*.embed_tokens=dense", "--no-verify")
    code, _, err = cli("convert", "--hf-path", tmp_path / "q", "--mlx-path", tmp_path / "qq", *words)
    assert code == 0 and "is quantised already and its losses stay" in err and "--q-recipe mixed_4_8" in err
    quantization = Lfm2VlConfig.from_pretrained(tmp_path / "qq").quantization
    assert quantization is not None and quantization["language_model.model.embed_tokens"] is False
