"""Who may import whom. Reads the imports of every module, those inside functions too."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlx_lfm2vl"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))

# Lowest first. A part imports only from lower ones; parts of one line never import each other.
LAYERS = (
    ("errors", "__pyinstaller"),
    ("demo", "model_folder", "threads"),
    ("hub",),
    ("config",),
    ("processing", "models"),
    ("backends", "constraints"),
    ("distributed",),
    ("weights",),
    ("adapters",),
    ("generation",),
    ("compat", "tasks", "explanation"),
    ("pretrained",),
    ("engine",),
    ("conversion", "benchmark", "server", "training"),
    ("doctor", "evaluation"),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# The one file that may import a library, so that replacing or guarding it is one file's matter.
OWNERS = {
    "tokenizers": "mlx_lfm2vl/processing/tokenizer_backend.py",
    "jinja2": "mlx_lfm2vl/processing/sandbox.py",
    "httpcore2": "mlx_lfm2vl/processing/http_get.py",
    "pillow_heif": "mlx_lfm2vl/processing/formats.py",
    "pypdfium2": "mlx_lfm2vl/processing/pdf_process.py",
    "av": "mlx_lfm2vl/processing/video_file.py",
    "torch": "mlx_lfm2vl/compat/tensors.py",
    "prompt_toolkit": "mlx_lfm2vl/cli/line_editor.py",
    "argcomplete": "mlx_lfm2vl/cli/completion.py",
}
# Parts that may import a library.
HOMES = {
    "huggingface_hub": {"hub"},
    "PIL": {"processing", "benchmark", "tasks", "explanation"},
    "mlx": {
        *("models", "backends", "weights", "adapters", "generation", "explanation", "engine", "compat", "pretrained"),
        *("distributed",),
        *("conversion", "benchmark", "doctor", "training"),
    },
    "llguidance": {"constraints"},
    "safetensors": {"weights"},
    "matplotlib": {"conversion", "benchmark", "training"},
    "PyInstaller": {"__pyinstaller"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "h11": {"server"},
}
# Outside the parts that families have files in: tables by family, and what says of whom it speaks.
NAME_A_FAMILY = {
    *("__init__", "doctor/checks", "doctor/reference", "doctor/report", "doctor/bounds", "doctor/lfm3_checkpoint"),
    *("compat/auto_models", "compat/auto_processors", "compat/lfm3_models", "compat/lfm3_processors"),
    *("conversion/families", "conversion/plan", "generation/arguments", "tasks/recipes"),
    *("weights/names", "weights/corrections"),
}
NEVER = {"torchvision", "transformers", "mlx_vlm", "pickle", "requests"}


def part_of(module: str) -> str:
    """`mlx_lfm2vl.models.cache` -> `models`; the package itself -> `` (the lazy public names and the version)."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {name_of(path) for path in MODULES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of all modules that a file imports."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    return frozenset(found for node in ast.walk(tree) for found in _imported(node, package))


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in KNOWN else base


def own(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "mlx_lfm2vl"}


def foreign(path: Path) -> set[str]:
    """Top-level names of the libraries that a file imports."""
    names = {name.split(".")[0] for name in imports(path)}
    return names - set(sys.stdlib_module_names) - {"mlx_lfm2vl"}


def test_every_part_has_a_layer():
    parts = {part_of(name) for name in KNOWN} - {""}
    assert parts <= set(RANK), f"give {parts - set(RANK)} a place in LAYERS"


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(name_of(path))], ids=str)
def test_a_module_imports_only_from_lower_layers_and_its_own_part(path):
    part = part_of(name_of(path))
    for name in own(path):
        other = part_of(name)
        if other and other != part:
            assert RANK[other] < RANK[part], f"{path} imports {name}"


def test_the_package_itself_imports_nothing_at_run_time():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [[node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names] for node in top]
    assert set().union(*names) <= {"__future__", "importlib", "os", "sys", "typing", "zipimport"}


def test_files_of_one_part_have_an_order():
    """No two files of a part need each other, directly or through others."""
    graph = {
        name_of(path): {n for n in own(path) if part_of(n) == part_of(name_of(path))} - {name_of(path)}
        for path in MODULES
        if path.name != "__init__.py"
    }
    done: set[str] = set()
    while graph:
        free = {name for name, needs in graph.items() if not (needs & graph.keys())}
        assert free, f"these import each other: {sorted(graph)}"
        done |= free
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_libraries_are_imported_only_where_they_belong(path):
    part = part_of(name_of(path))
    for library in foreign(path):
        assert library not in NEVER, f"{path} imports {library}"
        if library in OWNERS:
            assert path.as_posix() == OWNERS[library], f"{path} imports {library}, which belongs to {OWNERS[library]}"
        if library in HOMES:
            assert part in HOMES[library], f"{path} imports {library}, which belongs to {sorted(HOMES[library])}"


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(name_of(path)) == "models"], ids=str)
def test_models_name_no_device_and_no_backend(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = (getattr(node, field, None) for node in ast.walk(tree) for field in ("id", "attr", "arg", "name", "module"))
    named = {name for name in names if isinstance(name, str)}
    words = re.compile(r"device|backend|metal|cuda|cpu|gpu", re.I)
    assert not [name for name in named if words.search(name)]


def test_no_grab_bag_modules():
    bags = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [path for path in MODULES if path.stem in bags or bags & set(path.parts)]


def test_few_files_name_a_family():
    outside = [path for path in MODULES if path.parts[1] not in ("models", "config", "processing")]
    naming = [path for path in outside if "lfm3" in (ROOT / path).read_text(encoding="utf-8").lower()]
    assert {str(path.relative_to("mlx_lfm2vl").with_suffix("").as_posix()) for path in naming} == NAME_A_FAMILY
