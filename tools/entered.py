"""The functions of the package that one answer enters: a warm question with a picture, through `generate`.

    python -m tools.entered

Prints each file with its functions, then the number of both. Functions without a name do not count.
"""

import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType

from mlx_lfm2vl import generate, load

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mlx_lfm2vl"
PICTURE = ROOT / "examples" / "scene.png"
QUESTION = "What is in this image?"


def entered() -> dict[str, set[str]]:
    """Files of the package, by their paths in it, and their functions that an answer of the demo model enters."""
    model, processor = load("demo", backend="mlx")
    generate(model, processor, QUESTION, PICTURE)
    found: defaultdict[str, set[str]] = defaultdict(set)

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<"):
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE):
                found[path.relative_to(PACKAGE).as_posix()].add(code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        generate(model, processor, QUESTION, PICTURE)
    finally:
        sys.setprofile(before)
    return found


def main() -> None:
    found = entered()
    for path, names in sorted(found.items()):
        print(f"{path:34} {' '.join(sorted(names))}")
    print(f"{len(found)} files, {sum(map(len, found.values()))} functions")


if __name__ == "__main__":
    main()
