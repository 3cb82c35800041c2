"""A Hugging Face (or MLX) folder or repository to an MLX folder, dense or quantised, complete with its other files.

The target is written beside its place under a temporary name and renamed at the end: whatever interrupts the work, no
folder is left that looks finished.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import Lfm2VlConfig, read_json
from ..errors import OptionError, OutputError
from ..hub import resolve
from ..model.lfm2vl import Lfm2VlForConditionalGeneration
from . import quantize
from .load import dtype_of, load_model
from .save import save_weights, write_json

COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    q_bits: int | None = None,
    q_group_size: int = 64,
    revision: str | None = None,
    token: str | bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the model `source` (folder, repository or `demo`) to the folder `target` and returns its path.

    `dtype`: `float32`, `float16` or `bfloat16` for what stays dense; None keeps the source's. `q_bits` 4 or 8 with
    `q_group_size` 32, 64 or 128 quantises the language model; vision tower and projector stay dense. An existing target
    is replaced only with `overwrite`. Raises `OptionError`, `OutputError`, and what loading raises.
    """
    spec = None if q_bits is None else quantize.check_options(q_bits, q_group_size)
    dtype_of(dtype)
    target = Path(target).expanduser()
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another place or overwrite it (--overwrite)")
    folder = resolve(source, revision=revision, token=token)
    if target.exists() and target.resolve() == folder.resolve():
        raise OutputError(f"{target}: is the source itself; choose another place")
    original = read_json(folder / "config.json")
    if spec and Lfm2VlConfig.from_dict(original, str(folder / "config.json")).quantization:
        raise OptionError(f"{folder}: is quantised already; convert from the dense original")

    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype=dtype)
    record = quantize.quantize(model, spec) if spec else None
    part = _beside(target)
    try:
        save_weights(model, part)
        write_json(part / "config.json", config_json(original, model, record))
        for name in (*COMPANIONS, *(path.name for path in folder.glob("LICENSE*"))):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, part / name)
        _put(part, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def config_json(
    original: dict[str, Any], model: Lfm2VlForConditionalGeneration, record: dict[str, Any] | None
) -> dict[str, Any]:
    """The source's config.json with what is true of the new weights: dtype, quantisation, layers of the tower, width of
    the feed-forward. Code references of the source are dropped."""
    out = {key: value for key, value in original.items() if key != "auto_map"}
    name = str(model.model.vision_tower.post_layernorm.weight.dtype).removeprefix("mlx.core.")
    for section in (out, out.get("text_config"), out.get("vision_config")):
        if isinstance(section, dict):
            section.update({key: name for key in ("dtype", "torch_dtype") if key in section})
    if "torch_dtype" not in out:
        out["dtype"] = name
    vision, text = dict(out.get("vision_config") or {}), dict(out.get("text_config") or {})
    vision["num_hidden_layers"] = model.config.vision_config.num_hidden_layers
    if Lfm2VlConfig.from_dict(original).text_config.feed_forward_size != model.config.text_config.feed_forward_size:
        text.pop("block_ff_dim", None)
        text.update(intermediate_size=model.config.text_config.feed_forward_size, block_auto_adjust_ff_dim=False)
    out.update(vision_config=vision, text_config=text)
    if record is not None:
        out["quantization"] = out["quantization_config"] = record
    return out


def _beside(target: Path) -> Path:
    """A new folder next to the target, hidden, on the same file system."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None


def _put(part: Path, target: Path) -> None:
    """Renames `part` to `target`; an old target is moved aside first and removed last."""
    part.chmod(0o755)
    if not target.exists():
        part.rename(target)
        return
    old = _beside(target)
    try:
        target.rename(old / "old")
        try:
            part.rename(target)
        except OSError:
            (old / "old").rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
