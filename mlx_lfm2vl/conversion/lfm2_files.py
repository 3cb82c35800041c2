"""The rules for LFM2-VL's files: what published folders state wrongly, and what other MLX programs look for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import Lfm2VlConfig, ProcessorConfig, read_json
from ..weights.save import write_json

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
PROCESSOR_CLASS = "Lfm2VlProcessor"
TEXT_NUMBERS = (
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "norm_eps", "rope_theta"),
    *("conv_L_cache", "conv_bias", "block_multiple_of"),
)
TOWER_NUMBERS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size"),
    *("num_patches", "layer_norm_eps"),
)
PROJECTOR = (
    "image_token_id",
    "downsample_factor",
    "projector_hidden_size",
    "projector_bias",
    "projector_use_layernorm",
)
SWIFT_READS = {"tile_size": 512, "encoder_patch_size": 16, "downsample_factor": 2, "max_tiles": 10}  # flat; defaults


def complete_processor(target: Path) -> None:
    """Raises a patch budget in a folder's processor files that is too small, and adds what mlx-swift-lm looks for."""
    processor = ProcessorConfig.from_folder(target)
    for name in PROCESSOR_FILES:
        if (target / name).is_file() and (data := read_json(target / name)) != (
            enough := with_budget(data, processor, only_raise=True)
        ):
            write_json(target / name, enough)
    first = next(name for name in reversed(PROCESSOR_FILES) if (target / name).is_file())
    if (data := read_json(target / first)) != (enough := for_swift(data, processor)):
        write_json(target / first, enough)


def with_budget(data: dict[str, Any], config: ProcessorConfig, only_raise: bool = False) -> dict[str, Any]:
    """A processor file with the `max_num_patches` that follows from its limits, where it has another (`only_raise`: a
    smaller one)."""
    out, budget = dict(data), config.image.max_num_patches
    if isinstance(out.get("image_processor"), dict):
        out["image_processor"] = with_budget(out["image_processor"], config, only_raise)
    stated = out.get("max_num_patches")
    if stated is not None and not (only_raise and isinstance(stated, int) and stated >= budget):
        out["max_num_patches"] = budget
    return out


def mended(data: dict[str, Any], config: ProcessorConfig) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A processor file with tiling on, unless it says that off is meant, and the patch budget that follows from the
    policy; and what was changed."""
    changes: list[tuple[str, str]] = []
    out = with_budget(data, config)
    if isinstance(out.get("image_processor"), dict):
        out["image_processor"], changes = mended(data["image_processor"], config)
    if out.get("do_image_splitting") is False and config.image.do_image_splitting:
        out["do_image_splitting"] = True
        changes.append(("do_image_splitting is false, as converters leave it", "set to true"))
        if out.get("use_thumbnail") is False:
            out["use_thumbnail"] = True
            changes.append(("use_thumbnail is false with it", "set to true"))
    if (budget := out.get("max_num_patches")) != (stale := data.get("max_num_patches")):
        changes.append((f"max_num_patches is {stale}", f"set to {budget}"))
    return out, changes


def for_swift(data: dict[str, Any], config: ProcessorConfig) -> dict[str, Any]:
    """The processor file that mlx-swift-lm reads, the first of the two that is there, with what it looks for in it and
    at its top alone."""
    out = {**data, "processor_class": PROCESSOR_CLASS}
    for key, default in SWIFT_READS.items():
        if key not in data and getattr(config.image, key) != default:
            out[key] = getattr(config.image, key)
    for key in ("image_mean", "image_std"):
        if key not in data and set(getattr(config.image, key)) != {0.5}:
            out[key] = list(getattr(config.image, key))
    return out


def spell_out(out: dict[str, Any], text: dict[str, Any], vision: dict[str, Any], config: Lfm2VlConfig) -> None:
    """States what other MLX programs take for something else where it is not said, or said in another spelling: mlx-vlm
    (the 450M's widths) and mlx-swift-lm (`block_ff_dim` is the hidden size, `rope_theta` 1e6, `full_attn_idxs` all)."""
    words = config.text_config
    adjusts = words.block_auto_adjust_ff_dim and words.block_ffn_dim_multiplier is not None
    stated: dict[str, Any] = {
        **{key: words.hidden_size for key in ("hidden_size", "block_dim", "conv_dim", "conv_dim_out")},
        **{key: getattr(words, key) for key in TEXT_NUMBERS},
        "model_type": "lfm2",
        "layer_types": list(words.layer_types),
        "block_ff_dim": words.intermediate_size if adjusts else words.feed_forward_size,
        "block_auto_adjust_ff_dim": adjusts,
        "block_ffn_dim_multiplier": words.block_ffn_dim_multiplier if adjusts else 1.0,
    }
    if not adjusts:
        text.update({key: stated[key] for key in ("block_ff_dim", "block_auto_adjust_ff_dim")})
        text["intermediate_size"] = stated["block_ff_dim"]
    if text.get("full_attn_idxs") is not None:
        text["full_attn_idxs"] = [at for at, kind in enumerate(words.layer_types) if kind == "full_attention"]
    tower = {"model_type": "siglip2_vision_model", **{key: getattr(config.vision_config, key) for key in TOWER_NUMBERS}}
    whole = {key: getattr(config, key) for key in PROJECTOR}
    for section, values in ((text, stated), (vision, tower), (out, whole)):
        section.update({key: value for key, value in values.items() if section.get(key) is None})
