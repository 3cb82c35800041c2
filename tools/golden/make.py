"""Freezes the reference implementation's numbers into tests/golden/, so that tests need no torch.

    python -m tools.golden.make              writes tests/golden/ anew
    python -m tools.golden.make --check      makes everything again in a temporary folder and lists what differs

It needs the extra `reference` (torch, torchvision, transformers 5.23). tests/golden/ then holds

    gen2/ gen25/ untied/      small random checkpoints in Hugging Face format   (checkpoints.py)
    lfm3/                     the same of LFM3-VL, with its cases               (lfm3.py)
    lfm2_text/ lfm3_text/     the same of text models                           (causal_lm.py)
    pictures/NAME.png         the pictures                                     (pictures.py)
    videos/NAME.png           videos, as animations without loss               (lfm3.py)
    cases/CHECKPOINT-NAME.npz every stage of one call; the keys are described in stages.py
    geometry.json             sizes of pictures and what becomes of them       (geometry.py)
    resize.npz                resized pictures, and how Pillow's differ        (resize.py)
    templates.json            chat templates rendered                          (text.py)
    tokens.json               texts encoded and decoded                        (text.py)
    generate.json             `generate` with each of its settings             (settings.py)
    manifest.json             versions, seeds, the cases with parameters and texts, and the SHA-256 of every file

`--check` wants integers, texts and pictures equal and floats within --tolerance of the largest value of their array:
another processor adds in another order. What is computed in bfloat16 is compared with a tolerance of its own: there the
order of a sum turns roundings. It fails, too, where a committed file is not the one of the manifest.
"""

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file

from . import causal_lm, lfm3
from .cases import CASES
from .checkpoints import NAMES, SEEDS, write_checkpoint
from .geometry import geometry
from .pictures import SIZES, draw
from .resize import resized
from .settings import answers
from .stages import ROUNDED, freeze, load, load_as
from .text import templates, tokens

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
ROUNDED_TOLERANCE = 0.1  # of the largest value, for what is computed in bfloat16; processors differ by 0.03
LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "jinja2", "numpy", "pillow")


def make(folder: Path) -> None:
    """Writes all golden files into `folder`."""
    torch.set_num_threads(1)  # sums in one order
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "cases").mkdir(exist_ok=True)
    for name in SIZES:
        draw(name).save(folder / "pictures" / f"{name}.png", optimize=True)
    np.savez_compressed(folder / "resize.npz", **resized())
    _write_json(folder / "geometry.json", geometry())
    cases, processors = [], {}
    for checkpoint in NAMES:
        write_checkpoint(checkpoint, folder / checkpoint)
        model, processor = load(str(folder / checkpoint))
        processors[checkpoint] = processor
        if checkpoint == "gen2":
            _write_json(folder / "generate.json", answers(model, processor))
        rounded = load_as(str(folder / checkpoint), torch.bfloat16, "sdpa") if checkpoint in ROUNDED else None
        for case in (case for case in CASES if case.checkpoint == checkpoint):
            arrays, texts = freeze(case, model, processor, rounded)
            np.savez_compressed(folder / "cases" / f"{case.id}.npz", **arrays)
            cases.append(_entry(case, texts))
    cases += make_lfm3(folder) + make_text(folder)
    _write_json(folder / "templates.json", templates(processors["gen25"]))
    _write_json(folder / "tokens.json", {name: tokens(processors[name].tokenizer) for name in ("gen2", "gen25")})
    manifest = {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "seeds": SEEDS | {lfm3.NAME: lfm3.SEED} | causal_lm.SEEDS,
        "files": _sums(folder),
        "cases": cases,
    }
    _write_json(folder / "manifest.json", manifest)


def make_lfm3(folder: Path) -> list[dict[str, Any]]:
    """Writes LFM3-VL's checkpoint and the arrays of its cases; the cases' entries of the manifest."""
    lfm3.write_checkpoint(folder / lfm3.NAME)
    (folder / "videos").mkdir(exist_ok=True)
    for name in lfm3.VIDEOS:
        lfm3.write_video(name, folder / "videos")
    model, processor = lfm3.load(folder / lfm3.NAME)
    made = []
    for case in lfm3.CASES:
        arrays, texts = lfm3.freeze(case, model, processor)
        np.savez_compressed(folder / "cases" / f"{case.id}.npz", **arrays)
        made.append(_entry(case, texts))
    return made


def make_text(folder: Path) -> list[dict[str, Any]]:
    """Writes the text models' checkpoints and the arrays of their cases; the cases' entries of the manifest."""
    made = []
    for name in causal_lm.CONFIG:
        causal_lm.write_checkpoint(name, folder / name)
        model, tokenizer = causal_lm.load(folder / name)
        for case in (case for case in causal_lm.CASES if case.checkpoint == name):
            arrays, texts = causal_lm.freeze(case, model, tokenizer)
            np.savez_compressed(folder / "cases" / f"{case.id}.npz", **arrays)
            made.append(_entry(case, texts))
    return made


def _entry(case: Any, texts: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": case.id,
        "checkpoint": case.checkpoint,
        "conversations": case.conversations,
        "pictures": case.picture_names,
        "options": case.options,
        "padding_side": case.padding_side,
        **texts,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(_on_lines(content) + "\n", encoding="utf-8")


def _on_lines(content: Any, depth: int = 3) -> str:
    """JSON with a line for each entry of the outer objects and of lists in them, so that a change can be read."""
    if depth and isinstance(content, dict) and content:
        entries = (f"{json.dumps(key)}: {_on_lines(value, depth - 1)}" for key, value in content.items())
        return "{\n" + ",\n".join(entries) + "\n}"
    if depth and isinstance(content, list) and content:
        return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in content) + "\n]"
    return json.dumps(content, ensure_ascii=False)


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differences(old: Path, new: Path, tolerance: float) -> list[str]:
    """One line for each thing in which the golden folder `old` differs from `new`."""
    found = []
    manifest = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    fresh = json.loads((new / "manifest.json").read_text(encoding="utf-8"))
    for name, stored in manifest["files"].items():
        if not (old / name).is_file():
            found.append(f"{name}: in the manifest but not there")
        elif hashlib.sha256((old / name).read_bytes()).hexdigest() != stored:
            found.append(f"{name}: not the file of the manifest")
    found += [f"{name}: not in the manifest" for name in _sums(old).keys() - manifest["files"].keys()]
    found += [f"manifest.json: {key} differs" for key in ("versions", "seeds", "cases") if manifest[key] != fresh[key]]
    for name in sorted(manifest["files"].keys() ^ fresh["files"].keys()):
        found.append(f"{name}: {'no longer made' if name in manifest['files'] else 'missing'}")
    for name in sorted(manifest["files"].keys() & fresh["files"].keys()):
        if (old / name).is_file():
            found += [f"{name}: {line}" for line in _compare(old / name, new / name, tolerance)]
    return found


def _compare(old: Path, new: Path, tolerance: float) -> list[str]:
    if old.read_bytes() == new.read_bytes():
        return []
    before, after = _arrays(old), _arrays(new)
    if before is None or after is None:
        return ["differs"]
    found = [f"{key} only on one side" for key in before.keys() ^ after.keys()]
    for key in sorted(before.keys() & after.keys()):
        one, two = before[key], after[key]
        if one.shape != two.shape or one.dtype != two.dtype:
            found.append(f"{key} is {one.dtype}{one.shape}, now {two.dtype}{two.shape}")
        elif one.dtype.kind == "f":
            error = np.abs(one - two).max(initial=0) / max(np.abs(two).max(initial=0), 1e-30)
            if not error <= (ROUNDED_TOLERANCE if key.endswith("_bfloat16") else tolerance):
                found.append(f"{key} differs by {error:.1e} of its largest value")
        elif not np.array_equal(one, two):
            found.append(f"{key} differs in {np.count_nonzero(one != two)} of {one.size} values")
    return found


def _arrays(path: Path) -> dict[str, np.ndarray] | None:
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return dict(stored)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return {"pixels": np.asarray(picture)}
    return None


def main() -> int:
    """Command line; exit code 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="for floats, of the largest value (default 1e-6)")
    parser.add_argument("--folder", type=Path, default=GOLDEN, help="default: tests/golden")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        if not args.check:
            shutil.copytree(temporary, args.folder, dirs_exist_ok=True)
            return 0
        found = differences(args.folder, Path(temporary), args.tolerance)
    print("\n".join(found) or "no differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
