"""README.md of a source: its front matter, and the card that is written from it."""

from __future__ import annotations

import functools
import random
import shutil

from mlx_lfm2vl.conversion.card import CardSource, front_matter, write_card
from mlx_lfm2vl.hub import is_repository

from .folders import DEMO, GOLDEN, FolderEntrance, folder, place

PUBLISHED = """---
library_name: transformers
license: other
license_name: lfm1.0
license_link: LICENSE
language:
- en
- 'fr'
pipeline_tag: image-text-to-text
tags: [vision, "vlm", mlx]
base_model: LiquidAI/LFM2-350M   # of the backbone
model-index:
- name: none
  results:
  - task: {type: image-text-to-text}
---

# A model

---
"""
LINES = (
    *(
        "---",
        "",
        "- ",
        "- a: b",
        "  - c",
        "license: >",
        "license: |",
        "  folded",
        "base_model:",
        "- a/b",
        "tags: [",
        "tags: ]",
    ),
    *(
        "base_model: [a/b, c/d]",
        "license: 'it''s'",
        'license: "a\\nb"',
        "language: no",
        "{",
        "}",
        "key",
        ": value",
        "a:b",
        "\t- x",
    ),
    *(
        "license_link: ../../etc/passwd",
        "base_model: ../x",
        "base_model: https://example.org/a",
        "é: é",
        "license: " + "x" * 3000,
        'license_link: "' + "x" * 3000 + '"',
        'license: "\\ud800\\0"',
        "license: &a " + "x" * 100,
        "language: [*a, *a]",
        "<<: [*a, *a]",
        "- no",
        "- 2001-13-45",
        "license: 1:00:00.5",
        "license: !!python/object/apply:os.getcwd []",
        "ignore_metadata_errors: true",
        "? [a]",
        "language: " + "[" * 2000,
    ),
)


@functools.cache
def seeds() -> dict[str, bytes]:
    made = {"published": PUBLISHED.encode(), "demo": (DEMO / "README.md").read_bytes()[:2000]}
    return made | {"windows": PUBLISHED.replace("\n", "\r\n").encode(), "none": b"# A model\n"}


def change(data: bytes, rng: random.Random) -> bytes:
    """Lines left out, twice, elsewhere, or others."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    for _ in range(rng.choice((1, 2, 3, 8))):
        at = rng.randrange(len(lines) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            del lines[at : at + 1]
        elif kind == 1:
            lines[at:at] = lines[at : at + 1] * rng.choice((1, 2, 500))
        elif kind == 2:
            rng.shuffle(lines)
        else:
            lines.insert(at, rng.choice(LINES) + rng.choice(("\n", "\r\n", "", "\u2028")))
    return "".join(lines).encode()


def run(data: bytes) -> int:
    source = CardSource.of("demo", place("card", "README.md", data))
    assert source.base_model is None or is_repository(source.base_model)
    out = folder("card-written")
    if not (out / "config.json").exists():
        shutil.copy(GOLDEN / "gen25" / "config.json", out)
    write_card(out, source, "a/b")
    head = front_matter((out / "README.md").read_text(encoding="utf-8"))
    assert head["library_name"] == "mlx" and head["tags"][0] == "mlx", head
    assert head.get("base_model") == source.base_model, head
    return 1 + len(head)


ENTRANCE = FolderEntrance("card", seeds, run, (), change=change)
