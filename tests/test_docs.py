"""The pages of docs/ do what they say: examples run as printed, tables name what there is.

A page's examples run in order in one folder, its Python as one program. Where output is shown it must be that, but for
numbers that a digest or the model's tokenizer decides. A table of arguments, fields, methods or errors has those of the
code, in its order, with its defaults.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

import mlx_lfm2vl
from mlx_lfm2vl import backends
from mlx_lfm2vl.cli import build_parser
from mlx_lfm2vl.cli.chat_help import HELP
from mlx_lfm2vl.cli.evaluate import MAX_TOKENS
from mlx_lfm2vl.cli.options import Parser, add_pictures
from mlx_lfm2vl.compat.loading import REFUSED
from mlx_lfm2vl.evaluation.benchmarks import FORMATS
from mlx_lfm2vl.evaluation.scoring import RULES, TEXTS

ROOT = Path(__file__).parent.parent
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "tools/README.md")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


OWN = (
    "transformers",
    "structured",
    "tasks",
    "server",
    "adapters",
    "distributed",
)  # pages whose Python has tests of its own


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGES[page], re.M | re.S)
    return [(language, body) for language, body in found if not languages or language in languages]


@pytest.fixture
def place(tmp_path):
    """A folder with what a clone has for examples, and an environment with the program on the path and no network."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    program = tmp_path / "bin" / "mlx-lfm2vl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mlx_lfm2vl "$@"\n')
    program.chmod(0o755)
    return tmp_path, os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


def run(command: list[str], place) -> subprocess.CompletedProcess[str]:
    folder, environment = place
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def without_counts(text: str) -> str:
    return re.sub(r'(_tokens": |"settings": )("\w+"|\d+)', r"\1...", text.strip())


@pytest.mark.soak
def test_the_command_lines_examples_run_and_print_what_is_shown(place):
    shown_outputs = 0
    for language, body in blocks("command-line", "console", "json"):
        if language == "json":
            assert body == (ROOT / "examples" / "rows.jsonl").read_text(encoding="utf-8")
            continue
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.strip().partition("\n")
            done = run(["sh", "-c", command], place)
            assert done.returncode == (2 if "error: " in shown else 0), f"{command}\n{done.stdout}"
            assert (not done.stdout) == (" > " in command), command
            if shown:
                assert without_counts(done.stdout) == without_counts(shown), command
                shown_outputs += 1
            if "--json" in command:
                assert_fields(json.loads(done.stdout))
    assert shown_outputs >= 8


def test_the_examples_of_explain_run_and_print_what_is_shown(place):
    for _, body in blocks("explain", "console"):
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.strip().partition("\n")
            done = run(["sh", "-c", command], place)
            assert (done.stdout.strip(), done.returncode) == (shown.strip(), 2 if "error: " in shown else 0), command


@pytest.mark.soak
def test_the_examples_of_adapters_run_and_print_what_is_shown(place):
    """What a command says of its progress, on stderr, is not shown."""
    folder, environment = place
    for language, body in blocks("adapters", "console", "json"):
        if language == "json":
            assert body == (ROOT / "examples" / "training" / "train.jsonl").read_text(encoding="utf-8")
            continue
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.strip().partition("\n")
            done = subprocess.run(
                ["sh", "-c", command], cwd=folder, env=environment, text=True, timeout=600, capture_output=True
            )
            assert (done.stdout.strip(), done.returncode) == (shown.strip(), 0), f"{command}\n{done.stderr}"
    ((_, program),) = blocks("adapters", "python")
    (shown,) = (body for _, body in blocks("adapters", "text") if "import" not in body)
    assert run([sys.executable, "-c", program], place).stdout == shown


def test_the_options_of_lora_are_on_its_page_with_their_defaults():
    parsers = commands_of(build_parser())
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| (.*?) \|", PAGES["adapters"], re.M))
    pictures = Parser(add_help=False)
    add_pictures(pictures)
    elsewhere = {"-h", "--model", "--revision", *pictures._option_string_actions}
    own = {action.option_strings[0]: action for action in parsers["lora"]._actions}
    assert rows.keys() == {name for name in own if name not in elsewhere}
    for name, said in rows.items():
        if re.fullmatch(r"[\d.e-]+", said):
            assert float(said) == own[name].default, name
        else:
            assert not own[name].default, name


@pytest.mark.soak
def test_the_example_of_evaluate_runs_and_prints_what_is_shown(place):
    ((_, shown),) = blocks("evaluate", "console")
    command, _, wanted = shown.removeprefix("$ ").partition("\n")
    done = run(["sh", "-c", command], place)
    assert (done.stdout, done.returncode) == (wanted, 0)
    ((_, rows),) = blocks("evaluate", "json")
    assert rows == (ROOT / "examples" / "evaluation" / "rows.jsonl").read_text(encoding="utf-8")


def test_the_tables_of_evaluate_are_those_of_the_code():
    parsers = commands_of(build_parser())
    pictures = Parser(add_help=False)
    add_pictures(pictures)
    elsewhere = {"-h", "--revision", *pictures._option_string_actions}
    own = {action.option_strings[0]: action for action in parsers["evaluate"]._actions if action.option_strings}
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| (\S*) ?.*?\|", PAGES["evaluate"], re.M))
    del rows["--format"]
    assert {*rows, "--format"} == {name for name in own if name not in elsewhere}
    assert int(rows["--batch-size"]) == own["--batch-size"].default and int(rows["--max-tokens"]) == MAX_TOKENS
    table = PAGES["evaluate"].split("## Rules")[1].split("## Models")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(RULES)
    table = PAGES["evaluate"].split("## Benchmarks")[1].split("## Options")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.M)) == tuple(FORMATS) == own["--format"].choices
    assert set(own["--scoring"].choices or ()) == TEXTS.keys() - {"formula"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("example", blocks("performance", "console"), ids=lambda each: each[1].partition("\n")[0])
def test_the_performance_pages_examples_print_tables_of_that_form(place, example):
    """Measured numbers differ; the columns and what was measured do not."""

    def form(text: str) -> list[str]:
        rows = [line for line in text.splitlines() if line.startswith("|")]
        squeezed = (re.sub(r" +", " ", re.sub(r"-+", "-", row)) for row in rows)  # columns are as wide as their numbers
        return [re.sub(r"\| [\d.]+( GB| %)?(?= \|)", "| #", row) for row in squeezed]

    command, _, shown = example[1].removeprefix("$ ").partition("\n")
    place[1][backends.VARIABLE] = "auto"  # as the page was made
    done = run(["sh", "-c", f"{command} --repeats 1"], place)
    assert done.returncode == 0, done.stdout
    assert form(done.stdout) == form(shown) and len(form(shown)) > 4


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def test_every_option_of_bench_is_on_its_page():
    parsers = commands_of(build_parser())
    known = {option for action in parsers["bench"]._actions for option in action.option_strings} - {"-h", "--help"}
    section = PAGES["performance"].split("## Beside")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", section)) == known


def assert_fields(made: dict) -> None:
    """The table of --json's fields is complete, in the order of the object."""
    section = PAGES["command-line"].split("`--json` prints")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.M) == list(made)
    assert set(made["images"][0]) == {"source", "tokens"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in OWN])
def test_the_python_of_a_page_is_one_program_that_runs(page, place):
    program = "\n".join(body for _, body in blocks(page, "python"))
    done = run([sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program], place)
    assert done.returncode == 0, done.stdout
    assert "At the left there is a large black ring, and at the bottom right a large pink square." in done.stdout
    assert "nowhere.png: no such picture" in done.stdout
    assert "cancelled\n" in done.stdout and "[ToolCall(name='place_of', arguments={'name': 'ring'})]" in done.stdout


def test_the_program_for_several_machines_answers_on_one(place):
    ((_, program),) = blocks("distributed", "python")
    done = run([sys.executable, "-c", program], place)
    assert done.stdout == "At the left there is a large black ring, and at the bottom right a large pink square.\n"


def test_the_examples_of_the_page_on_tasks_print_what_is_shown(place):
    program = "\n".join(body for _, body in blocks("tasks", "python"))
    done = run([sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program], place)
    assert done.returncode == 0 and done.stdout == "".join(body for _, body in blocks("tasks", "text"))
    shown, drawn = (
        Image.open(path).convert("L") for path in (ROOT / "docs/images/detect.jpg", place[0] / "detect.jpg")
    )
    assert shown.size == drawn.size == (640, 640)
    assert ImageStat.Stat(ImageChops.difference(shown, drawn)).mean[0] < 2
    for _, body in blocks("tasks", "console"):
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, wanted = part.strip().partition("\n")
            done = run(["sh", "-c", command], place)
            assert done.returncode == (2 if "error: " in wanted else 0) and done.stdout.strip() == wanted.strip(), (
                command
            )


def test_the_options_of_tasks_are_on_their_page():
    parsers = commands_of(build_parser())
    tasks = ("detect", "point", "read", "extract", "describe")
    own = {option for name in tasks for option in parsers[name]._option_string_actions} - {"-h", "--help"}
    own -= set(parsers["generate"]._option_string_actions) - {"--image", "--json"}
    table = re.findall(r"^\| (`--.*?) \|", PAGES["tasks"], re.M)
    assert {option for cell in table for option in re.findall(r"--\w+", cell)} == own


def test_the_table_of_recipes_is_that_of_the_code():
    section = PAGES["tasks"].split("## Recipes")[1].split("```")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{recipe.name}`" for recipe in mlx_lfm2vl.RECIPES]
    for (_, _, boxes, text, fields), recipe in zip(rows, mlx_lfm2vl.RECIPES, strict=True):
        assert re.findall(r"`(\w+)`", boxes) == list(recipe.boxes.keys if recipe.boxes else ())
        assert text == ("with layout" if recipe.layout else "plain" if recipe.read else "")
        assert bool(fields) == (recipe.extract is not None)


def test_the_documentation_s_example_of_transformers_answers(place):
    ((_, program),) = blocks("transformers", "python")
    done = run([sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", f"{program}print(text)"], place)
    assert done.returncode == 0, done.stdout
    assert "What is in this image?" in done.stdout and "large black ring" in done.stdout


def test_the_page_on_structured_answers_shows_what_its_examples_print(place):
    done = run([sys.executable, "-c", "\n".join(body for _, body in blocks("structured", "python"))], place)
    assert done.returncode == 0, done.stdout
    shown = "".join(body for _, body in blocks("structured", "text"))
    assert done.stdout.startswith(shown) and done.stdout.removeprefix(shown).startswith("True\n[")
    for _, body in blocks("structured", "console"):
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, output = part.strip().partition("\n")
            done = run(["sh", "-c", command], place)
            assert done.returncode == (2 if "error: " in output else 0), f"{command}\n{done.stdout}"
            assert done.stdout.strip() == output, command


def test_every_option_of_these_commands_is_on_the_page():
    parsers = commands_of(build_parser())
    commands = ("generate", "chat", "batch", "explain", "models", "doctor")
    for command in commands:
        for action in parsers[command]._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert f"{option}" in PAGES["command-line"], f"{command} {option}"
    for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGES["command-line"])) - {"--help"}:
        assert any(option in parsers[c]._option_string_actions for c in commands), option


def test_every_chat_command_is_on_the_page():
    table = re.findall(r"^\| `(/\w+)", PAGES["command-line"], re.M)
    assert table == re.findall(r"^(/\w+)", HELP, re.M)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page is called."""
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-").lower() for title in titles}


def test_the_links_lead_somewhere():
    for page in (*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in OUTSIDE)):
        for link in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_exist(page):
    for name in re.findall(r"\b(test_\w+\.py)\b", PAGES[page]):
        assert list((ROOT / "tests").rglob(name)), f"{page}: {name}"


def test_the_names_that_the_api_page_imports_are_public():
    for names in re.findall(r"^from mlx_lfm2vl import (.*)$", PAGES["python"], re.M):
        assert set(names.split(", ")) <= set(mlx_lfm2vl.__all__)


@pytest.mark.parametrize("name", mlx_lfm2vl.__all__)
def test_every_public_name_is_on_the_api_page(name):
    assert re.search(rf"(?<![\w.]){name}\b", "\n".join(re.findall(r"`[^`\n]+`|^\|.*\|$", PAGES["python"], re.M))), name


def test_the_page_of_transformers_names_what_there_is():
    page = PAGES["transformers"]
    (listed,) = re.findall(r"^Names to import: (.*?)\n\n", page, re.M | re.S)
    homes = {name: home for home, names in mlx_lfm2vl._HOMES.items() for name in names}
    assert set(re.findall(r"`(\w+)`", listed)) == {name for name, home in homes.items() if home.startswith("compat.")}
    refused, *not_offered = (re.findall(rf"^\| {kind} \| (.*) \|$", page, re.M) for kind in ("refused", "not offered"))
    for names in (re.findall(r"`(\w+)`", row) for row in not_offered[0][2:]):
        assert not set(names) - {"generate", "Chat", "convert"} & set(mlx_lfm2vl.__all__)
    assert set(REFUSED) < set(re.findall(r"`(\w+)`", refused[0]))


def table(head: str) -> list[tuple[list[str], str]]:
    """Of each row of the table whose head begins so: the names in its first cell, and its second cell."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGES["python"], re.M)
    assert found, f"no table of {head}"
    rows = [re.split(r"(?<!\\) \| ", line.strip("| \n") + " | ") for line in found[1].splitlines()]
    return [(re.findall(r"`\**(\w+)[^`]*`", row[0]), row[1].strip()) for row in rows]


def names_of(head: str) -> list[str]:
    return [name for names, _ in table(head) for name in names]


def assert_defaults(head: str, defaults: dict[str, object]) -> None:
    """What a table's second column says as a literal is so."""
    for names, cell in table(head):
        try:
            said = ast.literal_eval(cell.strip("`"))
        except (SyntaxError, ValueError):
            continue
        for name in names:
            assert said == defaults[name], f"{head}: {name} is {defaults[name]!r}, not {said!r}"


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments and their defaults."""
    return {name: each.default for name, each in inspect.signature(function).parameters.items() if name != "self"}


@pytest.mark.parametrize("name", ["load", "stream_generate", "Chat", "generate_batch", "Engine"])
def test_tables_of_arguments_are_those_of_the_code(name):
    known = arguments(getattr(mlx_lfm2vl, name))
    assert names_of(f"argument of `{name}`") == list(known)
    assert_defaults(f"argument of `{name}`", known)


def test_an_engines_request_has_the_arguments_of_a_stream_and_its_own():
    head, known = "argument of `Engine.submit`", arguments(mlx_lfm2vl.Engine.submit)
    own = {"model", "processor", "vision_cache", "prompt_cache", "stop", "overrides"}
    shared = set(arguments(mlx_lfm2vl.stream_generate)) - own
    assert set(known) == shared | {"overrides"} | set(names_of(head))
    assert_defaults(head, known)
    assert list(arguments(mlx_lfm2vl.GenerationRequest)) == [
        name for name in arguments(mlx_lfm2vl.GenerationRequest) if f"`{name}`" in PAGES["python"]
    ]


@pytest.mark.parametrize(
    "name", ["SourcePolicy", "GenerationResponse", "Statistics", "GenerationOptions", "Completion", "Explanation"]
)
def test_tables_of_fields_are_those_of_the_code(name):
    fields = dataclasses.fields(getattr(mlx_lfm2vl, name))
    assert names_of(f"field of `{name}`") == [field.name for field in fields]
    if name in ("SourcePolicy", "GenerationOptions"):
        assert_defaults(f"field of `{name}`", {field.name: field.default for field in fields})


def test_tables_of_methods_are_those_of_the_code():
    for kind in (mlx_lfm2vl.Chat, mlx_lfm2vl.Engine):
        public = {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
        assert set(names_of(f"method of `{kind.__name__}`")) == public
    public = {name for name, value in vars(mlx_lfm2vl.Explanation).items() if callable(value) and name[0] != "_"}
    assert set(names_of("method of `Explanation`")) == public
    properties = {name for name, value in vars(mlx_lfm2vl.Engine).items() if isinstance(value, property)}
    assert set(names_of("property of `Engine`")) == properties
    assert set(names_of("method of `Request`")) <= set(vars(mlx_lfm2vl.Request))


def test_the_sizes_of_caches_are_those_of_the_code():
    for name in ("PromptCache", "VisionCache"):
        (size,) = re.findall(rf"^\| `{name}` \|.*\| (\d+ [GM]iB) \|$", PAGES["python"], re.M)
        number, unit = size.split()
        assert arguments(getattr(mlx_lfm2vl, name))["limit"] == int(number) * {"GiB": 2**30, "MiB": 2**20}[unit]
        argument = {"PromptCache": "prompt_cache_bytes", "VisionCache": "vision_cache_bytes"}[name]
        assert dict((names[0], cell) for names, cell in table("argument of `Engine`"))[argument] == size


def test_the_table_of_errors_is_that_of_the_code():
    errors = [name for name in mlx_lfm2vl.__all__ if name.endswith("Error") and name != "Lfm2VlError"]
    rows = table("error")
    assert sorted(names[0] for names, _ in rows) == sorted(errors)
    for (name,), also in rows:
        assert also.strip("`") in [base.__name__ for base in getattr(mlx_lfm2vl, name).__bases__], name


def test_the_changelog_renames_what_is_gone_to_what_is_there():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    renames = re.findall(r"^\| `(\w+)`.* \| `(\w+)`.* \|$", text, re.M)
    assert len(renames) > 3
    for old, new in renames:
        assert old not in mlx_lfm2vl.__all__ and new in mlx_lfm2vl.__all__
    options = re.findall(r"^\| `(\w+)=` \| `(\w+)=` \|$", text, re.M)
    assert len(options) == 2
    for old, new in options:
        assert old not in arguments(mlx_lfm2vl.stream_generate) and new in arguments(mlx_lfm2vl.stream_generate)
    for module in re.findall(r"^\| .* \| `mlx_lfm2vl\.(\w+)` \|$", text, re.M):
        assert (ROOT / "mlx_lfm2vl" / module).is_dir(), module
