"""Declared dependencies and imported libraries are the same. Reads the imports of every module."""

import re
import tomllib
from importlib.util import find_spec

import pytest
from test_layers import MODULES, ROOT, foreign

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULE = {"pillow": "PIL"}  # of the packages that are imported by another name
OPTIONAL = ("plot", "heic", "pdf", "video", "server", "reference")  # extras without which a part is missing
CALLERS = {"PyInstaller"}  # what imports it runs within it
IMPORTED = frozenset().union(*map(foreign, MODULES))


def modules(requirements: list[str]) -> set[str]:
    names = [re.findall(r"^[\w-]+", requirement)[0].replace("-", "_") for requirement in requirements]
    return {MODULE.get(name, name) for name in names}


DECLARED = modules(PROJECT["dependencies"])


@pytest.mark.parametrize("module", sorted(DECLARED))
def test_every_declared_dependency_is_imported(module):
    assert module in IMPORTED
    assert find_spec(module)


def test_every_library_that_is_imported_is_a_declared_dependency():
    extras = [modules(PROJECT["optional-dependencies"][extra]) for extra in OPTIONAL]
    assert DECLARED.union(CALLERS, *extras) >= IMPORTED
