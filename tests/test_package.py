"""The package as a whole: public names, the weight of an import, a missing back end, and the built wheel."""

import ast
import importlib
import json
import os
import pickle
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_origin

import pytest

import mlx_lfm2vl
from mlx_lfm2vl import backends, errors

ROOT = Path(__file__).parent.parent
HEAVY = (
    "mlx",
    "mlx_lm",
    "transformers",
    "torch",
    "numpy",
    "PIL",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "httpx2",
    "httpcore2",
    "prompt_toolkit",
    "starlette",
    "uvicorn",
    "argcomplete",
)


def python(
    code: str, *options: str, arguments: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh process after `code`."""
    done = python(f"import json, sys\n{code}\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", mlx_lfm2vl.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(mlx_lfm2vl, name)
    assert get_origin(value) is Literal or (value.__doc__ and value.__doc__.strip())
    assert name in dir(mlx_lfm2vl)


def test_star_import_and_a_name_that_does_not_exist():
    names: dict[str, object] = {}
    exec("from mlx_lfm2vl import *", names)
    assert set(mlx_lfm2vl.__all__) <= set(names)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = mlx_lfm2vl.lode  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'lode'"):
        exec("from mlx_lfm2vl import lode")


def test_every_error_is_of_one_family():
    errors = importlib.import_module("mlx_lfm2vl.errors")
    public = [value for value in vars(errors).values() if getattr(value, "__module__", "") == errors.__name__]
    public = [value for value in public if isinstance(value, type)]
    assert len(public) > 10
    for error in [*public, mlx_lfm2vl.BackendError]:
        assert issubclass(error, (mlx_lfm2vl.Lfm2VlError, UserWarning))
        assert error.__name__ in mlx_lfm2vl.__all__


@pytest.mark.parametrize(
    "code", ["import mlx_lfm2vl", "import mlx_lfm2vl.cli", "from mlx_lfm2vl import demo, ImageError"]
)
def test_a_plain_import_loads_no_library(code):
    assert not loaded_after(code) & set(HEAVY)


def test_processing_pictures_starts_no_mlx():
    code = "from mlx_lfm2vl import Lfm2VlImageProcessor\nLfm2VlImageProcessor()"
    assert not loaded_after(code) & {"mlx", "mlx_lm", "transformers", "torch"}


def test_generating_loads_neither_transformers_nor_torch_nor_mlx_lm():
    code = "from mlx_lfm2vl import load, stream_generate, convert"
    assert not loaded_after(code) & {"mlx_lm", "transformers", "torch", "mlx_vlm"}


def test_an_answer_about_a_picture_imports_no_optional_library():
    code = """
from mlx_lfm2vl import GenerationOptions, generate, load
model, processor = load("demo")
generate(model, processor, "What is in this image?", "examples/scene.png", options=GenerationOptions(max_tokens=2))
"""
    assert not loaded_after(code) & {"mlx_lm", "transformers", "torch", "mlx_vlm", "huggingface_hub", "httpx2", "scipy"}


def test_the_package_says_that_it_is_typed():
    assert (Path(mlx_lfm2vl.__file__).parent / "py.typed").is_file()


# --- no back end --------------------------------------------------------------------------------------------------

# What `import mlx.core` does where mlx is installed without mlx-cpu or mlx-cuda: the dynamic linker's own words.
NO_BACKEND = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx.core":
            raise ImportError("libmlx.so: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="on a Mac the back end comes with mlx")
def test_without_a_back_end_the_command_line_says_what_to_install():
    done = python(
        f"{NO_BACKEND}\nfrom mlx_lfm2vl.cli import main\n"
        f"sys.exit(main(['generate', '--image', {str(ROOT / 'tests/golden/pictures/small.png')!r}]))"
    )
    assert done.returncode == 2 and done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert last.startswith("mlx-lfm2vl: error: MLX has no back end here (libmlx.so")
    assert "pip install 'mlx[cpu]'" in last and "cuda13" in last


def test_without_a_back_end_the_api_raises_an_import_error():
    done = python(
        f"{NO_BACKEND}\ntry:\n    from mlx_lfm2vl import load\nexcept ImportError as e:\n    print(type(e).__name__)"
    )
    assert done.stdout.strip() == "BackendError", done.stderr


# What `import mlx.core` does in an app that was frozen by imports alone: MLX's library misses a module of its package.
NO_MODULE = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx._reprlib_fix":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Finder())
"""
REFUSED = "try:\n    from mlx_lfm2vl import load\nexcept ImportError as e:\n    print(type(e).__name__, str(e))"


def test_the_first_cause_of_a_failed_import_is_named():
    said = python(f"{NO_MODULE}\n{REFUSED}").stdout
    assert said.startswith("BackendError MLX has no back end here (No module named 'mlx._reprlib_fix'); ")


def test_a_frozen_app_is_told_the_cause_and_not_what_to_install():
    said = python(f"{NO_MODULE}\nsys.frozen = True\n{REFUSED}").stdout
    assert said.startswith("BackendError MLX cannot be imported in this app (No module named 'mlx._reprlib_fix'); ")
    assert "docs/apps.md" in said and "pip install" not in said


def test_bench_in_a_frozen_app_starts_no_second_app():
    done = python("import sys\nsys.frozen = True\nfrom mlx_lfm2vl.cli import main\nsys.exit(main(['bench']))")
    assert done.returncode == 2 and "which a frozen app lacks" in done.stderr.splitlines()[-1]


def test_an_import_from_an_archive_is_refused_with_the_reason(wheel):
    done = python("import sys\nsys.path.insert(0, sys.argv[1])\nimport mlx_lfm2vl", arguments=[str(wheel)])
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: mlx_lfm2vl cannot be imported from the archive {wheel}, as it reads files")


def test_the_remedy_fits_the_machine():
    assert "Apple silicon" in backends.remedy("darwin") and "cpu" not in backends.remedy("darwin")
    assert "mlx[cpu]" in backends.remedy("linux")


# --- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_the_demo_model_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mlx_lfm2vl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert {"mlx_lfm2vl/py.typed", "mlx_lfm2vl/demo/config.json", "mlx_lfm2vl/demo/model.safetensors"} <= names
    assert wheel.stat().st_size < 9_000_000


@pytest.mark.soak
@pytest.mark.slow
def test_the_wheel_in_a_bare_environment_answers_about_a_picture(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    folder = tmp_path / "venv" / "bin"
    target = f"{wheel}[cpu]" if sys.platform == "linux" else str(wheel)
    done = subprocess.run(
        [folder / "python", "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", target],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "picture.png"
    picture.write_bytes((ROOT / "tests" / "golden" / "pictures" / "small.png").read_bytes())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    answers = [
        subprocess.run(
            [*command, "generate", "--image", "picture.png", "--max-tokens", "8"],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=environment,
        )
        for command in ([folder / "mlx-lfm2vl"], [folder / "python", "-m", "mlx_lfm2vl"])
    ]
    for answer in answers:
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip()
        assert "bundled demo model" in answer.stderr
    assert answers[0].stdout == answers[1].stdout


@pytest.mark.parametrize("name", sorted(n for n in dir(errors) if n.endswith("Error") and n[0].isupper()))
def test_every_error_is_one_line_that_a_terminal_may_show(name):
    error = getattr(errors, name)("a\n\x1b[31mEVIL.safetensors: is\tdamaged \u202e")
    assert str(error) == "a \\x1b[31mEVIL.safetensors: is damaged \\u202e"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_import_public_names_only(example):
    for node in ast.walk(ast.parse(example.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_lfm2vl"):
            assert node.module == "mlx_lfm2vl" and {alias.name for alias in node.names} <= set(mlx_lfm2vl.__all__)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("mlx_lfm2vl.", "mlx.")) for alias in node.names)


@pytest.mark.parametrize("options", [("-X", "dev", "-W", "error"), ("-OO",)], ids=" ".join)
def test_an_app_runs_in_each_mode_of_python(options):
    done = python(
        """
import asyncio
from mlx_lfm2vl import Engine
async def main():
    async with Engine("demo") as engine:
        print((await engine.submit("What colour is the ring?", "examples/scene.png")).text)
        print(await engine.chat().aask("What colour is the ring?", "examples/scene.png"))
asyncio.run(main())
""",
        *options,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Black.\nBlack.\n", "")


def test_names_may_be_used_first_by_several_threads_at_once():
    done = python(
        """
import threading
barrier, said = threading.Barrier(8), []
def work(name):
    barrier.wait()
    import mlx_lfm2vl as lfm
    getattr(lfm, name)
    said.append(lfm.generate(*lfm.load("demo"), "What colour is the ring?", "examples/scene.png"))
names = ("generate", "Engine", "load", "Chat", "convert", "AutoProcessor", "diagnose", "load_image")
threads = [threading.Thread(target=work, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(said == ["Black."] * 8)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_settings_of_the_process_stay_as_they_are():
    """But for environment variables that threadpoolctl and this package set, where nobody had."""
    done = python(
        """
import asyncio, gc, locale, logging, multiprocessing, os, random, signal, socket, sys, threading, warnings
import numpy, PIL.Image
def state():
    loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    return {
        "logging": [(each.name, each.handlers, each.level, each.propagate) for each in loggers if each.handlers],
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook, warnings.showwarning),
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path), "umask": os.umask(0o22),
        "locale": locale.setlocale(locale.LC_ALL), "warnings": list(warnings.filters),
        "random": (random.getstate(), str(numpy.random.get_state())), "numpy": numpy.geterr(),
        "start method": multiprocessing.get_start_method(allow_none=True), "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "collector": (gc.isenabled(), gc.get_threshold()), "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(), "sockets": socket.getdefaulttimeout(),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
    }
before = state()
from mlx_lfm2vl import Engine, generate, load
generate(*load("demo"), "What is in this image?", "examples/scene.png")
with Engine("demo") as engine:
    engine.chat().ask("Hello.", "examples/scene.png")
after = state()
for name in ("OPENBLAS_THREAD_TIMEOUT", "KMP_DUPLICATE_LIB_OK"):
    after["environment"].pop(name, None), before["environment"].pop(name, None)
for key in before:
    if before[key] != after[key]:
        print(key, before[key], after[key])
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_sub_interpreter_is_refused():
    pytest.importorskip("_xxsubinterpreters", reason="sub-interpreters have another module in this Python")
    done = python(
        """
import _xxsubinterpreters as interpreters
interpreters.run_string(interpreters.create(isolated=False), '''
try:
    from mlx_lfm2vl import load
except ImportError as error:
    print(type(error).__name__, error)
''')
from mlx_lfm2vl import generate, load
print(generate(*load("demo"), "What colour is the ring?", "examples/scene.png"))
"""
    )
    refused = "BackendError MLX cannot be used in a sub-interpreter; use a process of its own (multiprocessing)"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{refused}\nBlack.\n", "")
