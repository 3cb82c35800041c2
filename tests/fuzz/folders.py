"""For the entrances that read model folders: where an execution keeps its files, and changes of what files mean."""

from __future__ import annotations

import atexit
import copy
import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .entrance import Entrance

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
DEMO = ROOT / "mlx_lfm2vl" / "demo"
SPLIT = b"\n\n\n"  # between the files of an input
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**16, 2**24, 2**31, 2**32, 2**63, 10**30, 10**400),
    *(
        0.5,
        -0.0,
        1e-300,
        1e30,
        1e300,
        float("inf"),
        float("nan"),
        "",
        "a",
        "\0",
        "\n",
        "é",
        "\ud800",
        "default",
        "x" * 5000,
    ),
    *([], {}, [[]], [None], ["a"], [0] * 100, {"a": {}}, {"": 0}),
)


@functools.cache
def folder(entrance: str) -> Path:
    """A folder in memory, one an entrance and process."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def place(entrance: str, name: str, data: bytes) -> Path:
    """The entrance's folder, with the file in it."""
    (folder(entrance) / name).write_bytes(data)
    return folder(entrance)


@dataclass(frozen=True)
class FolderEntrance(Entrance):
    """Half of the executions change the bytes, the others by `change` what the bytes mean."""

    change: Callable[[bytes, random.Random], bytes] | None = None

    def input(self, number: int) -> tuple[str, bytes]:
        rng = random.Random(f"{self.name} meaning {number}")
        if self.change is None or rng.random() < 0.5:
            return super().input(number)
        name = rng.choice(sorted(self.seeds()))
        return name, self.change(self.seeds()[name], rng)


def change_json(data: bytes, rng: random.Random) -> bytes:
    """A few changes in one of the JSON files of an input."""
    files = data.split(SPLIT)
    at = rng.randrange(len(files))
    tree = json.loads(files[at])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _change(tree, rng)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        text = text.replace(b",", b", " + text[1 : text.find(b",")] + b",", 1)  # a key twice
    return SPLIT.join([*files[:at], text, *files[at + 1 :]])


def _change(tree: Any, rng: random.Random) -> None:
    """Goes down to some node of a tree and changes an entry of it."""
    node = tree
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            node[key] = copy.deepcopy(rng.choice([tree, *_values(tree)]))
        elif kind == 2 and isinstance(node, dict):
            node[rng.choice(("", "type", "content", "rope_theta", "head_dim", "Regex", key + "s"))] = node.pop(key)
        elif kind == 3 and isinstance(node[key], int):
            node[key] = int(node[key]) + rng.choice((-1, 1, 2, 1000))
        elif kind == 4:
            for _ in range(rng.choice((1, 50))):
                node[key] = [node[key]]
        else:
            node[key] = copy.deepcopy(rng.choice(ODD))
        return


def _values(tree: Any) -> list[Any]:
    inner = tree.values() if isinstance(tree, dict) else tree
    return list(inner)[:50]
