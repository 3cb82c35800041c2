"""Pages for those who work on the project name what there is, and leave no folder and no program out."""

import ast
import hashlib
import importlib
import re
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from test_layers import PACKAGE, RANK, ROOT

from tools.entered import entered

ARCHITECTURE, CONTRIBUTING = "docs/architecture.md", "CONTRIBUTING.md"
RELEASING, TOOLS = "docs/releasing.md", "tools/README.md"
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (ARCHITECTURE, CONTRIBUTING, RELEASING, TOOLS)}
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = sorted(path for path in PACKAGE.glob("*/__init__.py"))
FOLDERS = sorted(path for path in PACKAGE.rglob("*") if path.is_dir() and not path.name.startswith("__"))
MADE = ("dist", "mlx_lfm2vl-0.2.0-py3-none-any.whl")  # by a release
SUFFIX = re.compile(r"\.(py|md|json|yml|toml|safetensors|npz|png|whl)$")


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)


def fences(page: str, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.M | re.S))


def quoted(page: str) -> list[str]:
    """What stands in backticks, and in the drawings what looks like a file or a folder."""
    drawn = re.findall(r"(?<![\w/])[a-z_]+(?:/[a-z_]+)*(?:\.py|/)(?![\w/])", fences(page, "text"))
    return re.findall(r"`([^`\n]+)`", prose(page)) + drawn


def is_path(text: str) -> bool:
    return bool(re.fullmatch(r"[\w./-]+", text)) and bool(
        "/" in text.strip("/") or text.endswith("/") or SUFFIX.search(text)
    )


def places(text: str, page: str) -> list[Path]:
    """Where a path may be: from the root, the package, or, for a file in a drawing or behind its folder, within it."""
    found = [top / text for top in (ROOT, PACKAGE) if (top / text).exists()]
    within = "/" not in text and page == ARCHITECTURE
    return found + ([path for path in SOURCES if path.name == text] if within else [])


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    paths = [text for text in quoted(page) if is_path(text) and text not in MADE]
    assert len(paths) > 8
    for text in paths:
        assert places(text, page), f"{page}: {text}"


@cache
def words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", "\n".join(SOURCES.values())))


def test_every_name_of_the_architecture_exists():
    names = [text for text in quoted(ARCHITECTURE) if re.fullmatch(r"[A-Za-z_][\w.]*", text) and not is_path(text)]
    assert len(names) > 40
    held = (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    for name in names:
        if name not in held:
            assert set(name.split(".")) <= words(), name
        if re.match(r"[A-Z]\w*\.\w", name):  # a method of a class
            owner, method = name.split(".")
            source = next(text for text in SOURCES.values() if re.search(rf"^class {owner}\b", text, re.M))
            body = re.split(rf"^class {owner}\b", source, flags=re.M)[1].split("\nclass ")[0]
            assert f"def {method}(" in body, name


def test_classes_of_the_drawings_exist():
    drawn = set(re.findall(r"(?<!\w)(?:[A-Z][a-z0-9]+){2,}", fences(ARCHITECTURE, "text")))
    assert len(drawn) > 5
    assert drawn <= words()


def test_every_folder_is_named():
    for folder in FOLDERS:
        name = f"`{folder.relative_to(PACKAGE).as_posix()}/`"
        assert name in PAGES[ARCHITECTURE], f"{name} has no place in {ARCHITECTURE}"
    tree = README.split("## Where things are")[1].split("## ")[0]
    for path in PACKAGES:
        assert re.search(rf"^      {path.parent.name}/  ", tree, re.M), f"{path.parent.name} has no place in README.md"


def test_both_lists_of_folders_have_the_order_of_the_layers():
    table = PAGES[ARCHITECTURE].split("## Folders")[1].split("Files to read first")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.M)
    tree = README.split("## Where things are")[1].split("## ")[0]
    for listed in (" ".join(rows), " ".join(re.findall(r"^      ([\w./]+)  ", tree, re.M))):
        parts = [name.split("/")[0].removesuffix(".py") for name in re.findall(r"[\w./]+", listed)]
        ranks = [RANK[part] for part in parts]
        assert ranks == sorted(ranks), parts
        assert {*parts} == {*RANK} - {"__main__"}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_a_package_says_what_goes_in_and_what_comes_out(path):
    text = ast.get_docstring(ast.parse(SOURCES[path])) or ""
    lines = text.splitlines()
    assert 1 < len(lines) <= 3, f"{path}: {len(lines)} lines"
    assert re.search(r"\bIn: .+\bOut: .+", lines[-1]), f"{path}: says not what goes in and what comes out"


def test_the_threads_of_the_table_are_those_of_the_code():
    code = set(re.findall(r'name="(mlx-lfm2vl [\w ]+)"', "\n".join(SOURCES.values())))
    assert code and code == set(re.findall(r"^\| `(mlx-lfm2vl [\w ]+)`", PAGES[ARCHITECTURE], re.M))


def test_exit_codes_and_the_names_of_a_command_are_those_of_the_code():
    section = PAGES[ARCHITECTURE].split("**A command.**")[1].split("\n\n")[0]
    codes = set(re.findall(r"\b(\d+) ", section.split("Exit codes:")[1]))
    assert codes == {"0", "1", "2", "130", "141"}
    commands = SOURCES[PACKAGE / "cli" / "__init__.py"]
    assert "return 141" in commands and "return 2" in commands
    for name in re.findall(r"`([A-Z]+|\w+_\w+)`", section):
        assert name in commands, name


@pytest.mark.parametrize("page", [CONTRIBUTING, RELEASING])
def test_the_targets_of_make_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(
        re.findall(r"\bmake ([a-z]+)\b", " ".join(re.findall(r"`[^`\n]+`|^ *make .*|^make .*", PAGES[page], re.M)))
    )
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), f"{page}: make {target}"


def test_the_commands_of_contributing_run_tests_that_exist():
    commands = re.findall(r"pytest (tests/[\w/.]+)(?: -k (\w+))?", fences(CONTRIBUTING, "sh"))
    assert len(commands) == 2
    for file, word in commands:
        assert re.search(rf"def test_\w*{word}", (ROOT / file).read_text(encoding="utf-8")), (file, word)


def test_the_marks_of_contributing_are_declared():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    marks = {
        *re.findall(r"pytest\.mark\.(\w+)", PAGES[CONTRIBUTING]),
        *re.findall(r"marked `(\w+)`", PAGES[CONTRIBUTING]),
    }
    assert marks == {"backends", "soak"}
    for mark in marks:
        assert re.search(rf'^    "{mark}\b', project, re.M), mark


def test_a_module_and_a_test_file_are_read_in_one_sitting():
    for folder, most in ((PACKAGE, 400), (ROOT / "tests", 600)):
        lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")}
        assert {path: length for path, length in lengths.items() if length > most} == {}


def test_the_demo_weights_are_those_of_the_checklist():
    sums = re.findall(r"\b[0-9a-f]{64}\b", PAGES[RELEASING])
    file = PACKAGE / "demo" / "model.safetensors"
    assert sums == [hashlib.sha256(file.read_bytes()).hexdigest()]


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="the page counts without a GPU")
def test_an_answer_enters_no_more_files_than_the_page_says():
    [said] = re.findall(r"enters (\d+) files and (\d+) functions", PAGES[ARCHITECTURE])
    files, functions = map(int, said)
    found = entered()
    assert len(found) <= files, sorted(found)
    assert sum(map(len, found.values())) <= functions + 4, found  # a machine may limit memory in more ways


PROGRAMS = re.findall(r"^\| `(\w+(?:\.\w+)?)` \|.*\| (.*) \|$", PAGES[TOOLS], re.M)


def test_the_table_of_tools_has_every_program():
    """But for parts of `compare.peers`, which starts them."""
    files = [path for path in (ROOT / "tools").rglob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    parts = [path.relative_to(ROOT / "tools").with_suffix("").parts[:2] for path in files]
    assert {".".join(names) for names in parts} == {name for name, _ in PROGRAMS}


@pytest.mark.parametrize("program", [name for name, needs in PROGRAMS if not needs.startswith("reference")])
def test_a_tool_that_needs_no_torch_starts(program):
    module = importlib.import_module(f"tools.{program}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.__main__")
    assert callable(module.main)


def test_the_tools_that_pages_name_exist():
    patterns = ("*.md", "docs/*.md", "examples/*.md", "tools/*.md", "mlx_lfm2vl/*/*.md")
    text = "\n".join(path.read_text(encoding="utf-8") for pattern in patterns for path in ROOT.glob(pattern))
    assert set(re.findall(r"python -m tools\.([\w.]*\w)", text)) <= {name for name, _ in PROGRAMS}
    for path in re.findall(r"`(tools/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
