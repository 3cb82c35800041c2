"""Makes what is measured: `python -m tools.compare.peers.materials checkpoint|pictures|folders WORK`.

checkpoint (with torch and transformers): WORK/float32, LFM2.5-VL-450M's shape in the makers' layout with seeded random
weights (see tools/golden/checkpoints.py; every part matters, and greedy choices are far apart). folders (with
mlx_lfm2vl): the same as WORK/bfloat16 and WORK/4bit, as published models are, and the demo model as WORK/demo. pictures
(with torch and transformers): PNG and JPEG files of seeded drawings.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from .environments import ROOT

SIZES = ((256, 256), (512, 512), (1500, 1000))
SEED = 450


def checkpoint(work: Path) -> None:
    from ...golden.checkpoints import IMAGE_PROCESSORS, write_like
    from ..convert import CONFIG_450M

    folder = work / "making"
    shutil.rmtree(folder, ignore_errors=True)
    config = CONFIG_450M | {"dtype": "float32", "eos_token_id": 7, "projector_hidden_act": "gelu"}
    write_like("gen25", folder, config, IMAGE_PROCESSORS["gen25"], SEED)
    folder.rename(work / "float32")


def folders(work: Path) -> None:
    from mlx_lfm2vl import convert, demo

    shared: dict[str, Any] = {"verify": False, "overwrite": True}
    convert(work / "float32", work / "bfloat16", dtype="bfloat16", **shared)
    convert(work / "float32", work / "4bit", dtype="bfloat16", quantize=True, q_bits=4, **shared)
    convert(demo.path(), work / "demo", **shared)


def pictures(work: Path) -> None:
    from ...golden.pictures import draw

    for width, height in SIZES:
        draw("peers", (width, height)).save(work / f"{width}x{height}.png")
    for number in range(8):
        draw(f"peers {number}", (256, 256)).save(work / f"256x256-{number}.png")
    draw("peers", (4000, 3000)).save(work / "4000x3000.jpg", quality=90)
    shutil.copyfile(ROOT / "examples" / "scene.png", work / "scene.png")


if __name__ == "__main__":
    {"checkpoint": checkpoint, "folders": folders, "pictures": pictures}[sys.argv[1]](Path(sys.argv[2]))
