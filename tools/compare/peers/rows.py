"""What is compared: tasks for `worker.py`, the numbers that are read from their results, and the targets."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OURS, VLM, HF = "mlx-lfm2vl", "mlx-vlm", "transformers"
PROMPT = "What is in this picture?"
TEXT_PROMPT = "Describe the image. How many shapes are there?"
DEMO_PROMPT = "What is in this image?"
PACKAGES = {OURS: "import mlx_lfm2vl", VLM: "import mlx_vlm", HF: "import transformers"}
NAMES = {
    OURS: "from mlx_lfm2vl import load, stream_generate",
    VLM: "from mlx_vlm import load, stream_generate",
    HF: "import tools.reference_shim; from transformers import AutoModelForImageTextToText, AutoProcessor",
}
BATCH = 8


@dataclass(frozen=True)
class Number:
    """A column of numbers: how it is read from a result, its unit, whether less is better, and the targets as ratios of
    ours to the peer's (at most where less is better, at least where more is)."""

    title: str
    read: Callable[[dict[str, Any]], float]
    unit: str = "s"
    less: bool = True
    targets: dict[str, float] = field(default_factory=dict)
    limit: float | None = None  # of ours alone


@dataclass(frozen=True)
class Row:
    """`task(side, work)` is a task of `worker.py`, or {"kind": "process", "command"}. `same`: sides whose tokens must
    be ours. `seconds`: how long a process may take. `small`: measured without OpenBLAS, too, where products take a
    hundred times as long. `rounds`: at most so many, where one takes minutes."""

    name: str
    numbers: tuple[Number, ...]
    task: Callable[[str, str], dict[str, Any]]
    sides: tuple[str, ...] = (OURS, VLM, HF)
    same: tuple[str, ...] = ()
    seconds: float = 600.0
    small: bool = False
    rounds: int = 5


def median(key: str) -> Callable[[dict[str, Any]], float]:
    return lambda result: statistics.median(result[key])


def answer(
    picture: str | None,
    tokens: int,
    *,
    folder: str = "float32",
    warm: tuple[str | None, ...] = ("256x256.png",),
    repeats: int = 1,
) -> Callable[[str, str], dict[str, Any]]:
    def task(side: str, work: str) -> dict[str, Any]:
        return {
            "kind": "answer",
            "folder": f"{work}/{folder}",
            "picture": picture and f"{work}/{picture}",
            "prompt": PROMPT if picture else TEXT_PROMPT,
            "tokens": tokens,
            "warm": [name and f"{work}/{name}" for name in warm],
            "repeats": repeats,
        }

    return task


def preprocess(side: str, work: str) -> dict[str, Any]:
    picture = f"{work}/4000x3000.jpg"
    return {"kind": "preprocess", "folder": f"{work}/float32", "picture": picture, "prompt": PROMPT, "repeats": 3}


def batch(side: str, work: str) -> dict[str, Any]:
    pictures = [f"{work}/256x256-{number}.png" for number in range(BATCH)]
    warm = [f"{work}/256x256.png"]
    shared = {"folder": f"{work}/float32", "prompt": PROMPT, "tokens": 16, "warm": warm, "repeats": 1}
    return {"kind": "batch", "pictures": pictures} | shared


def process(side: str, work: str) -> dict[str, Any]:
    folder, picture = f"{work}/demo", f"{work}/scene.png"
    words = ["--model", folder, "--image", picture, "--prompt", DEMO_PROMPT, "--max-tokens", "40"]
    command = {
        OURS: ["-m", "mlx_lfm2vl", "generate", *words, "--temp", "0"],
        VLM: ["-m", "mlx_vlm", "generate", *words, "--temperature", "0"],
    }
    return {"kind": "process", "command": command[side]}


def first(targets: dict[str, float]) -> Number:
    return Number("first token", median("first"), targets=targets)


def speed(targets: dict[str, float]) -> Number:
    return Number("decoding", median("speed"), "tokens/s", less=False, targets=targets)


ROWS = (
    Row(
        "256x256",
        (first({VLM: 0.2, HF: 0.6}), speed({VLM: 2.0, HF: 1.0})),
        answer("256x256.png", 24, repeats=3),
        same=(VLM, HF),
        small=True,
    ),
    Row("512x512", (first({VLM: 0.45, HF: 1.0}),), answer("512x512.png", 4, repeats=2), same=(VLM, HF)),
    Row("1500x1000", (first({VLM: 0.6, HF: 1.1}),), answer("1500x1000.png", 2), same=(HF,)),
    Row(
        "4-bit",
        (first({VLM: 0.03}),),
        answer("256x256.png", 1, folder="4bit", warm=()),
        (OURS, VLM),
        rounds=2,
    ),
    Row(
        "4-bit-text",
        (speed({VLM: 2.0}),),
        answer(None, 24, folder="4bit", warm=()),
        (OURS, VLM),
        small=True,
    ),
    Row(
        "bfloat16",
        (first({}), speed({})),
        answer("256x256.png", 12, folder="bfloat16", warm=()),
        rounds=2,
    ),
    Row(
        "import",
        (Number("the package", median("seconds"), limit=0.15),),
        lambda side, work: {"kind": "import", "program": PACKAGES[side]},
        small=True,
    ),
    Row(
        "import-names",
        (Number("what generating needs", median("seconds")),),
        lambda side, work: {"kind": "import", "program": NAMES[side]},
        small=True,
    ),
    Row(
        "process",
        (Number("picture to answer", median("seconds"), targets={VLM: 0.35}, limit=1.0),),
        process,
        (OURS, VLM),
        same=(VLM,),
        small=True,
    ),
    Row(
        "preprocess",
        (Number("12-megapixel JPEG", median("seconds"), targets={VLM: 0.8, HF: 0.8}),),
        preprocess,
        small=True,
    ),
    Row(
        "memory",
        (Number("peak, 512x512", lambda result: result["peak"] / 1e9, "GB", targets={VLM: 0.9, HF: 0.8}),),
        answer("512x512.png", 4, warm=()),
        same=(VLM, HF),
    ),
    Row(
        "batch",
        (
            Number(
                "8 pictures of 256x256, 16 tokens each",
                lambda result: BATCH / statistics.median(result["seconds"]),
                "pictures/s",
                less=False,
                targets={VLM: 3.0, HF: 1.0},
            ),
        ),
        batch,
        same=(VLM, HF),
    ),
)
