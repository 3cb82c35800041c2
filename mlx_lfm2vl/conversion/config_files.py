"""The files beside the weights: config.json, generation, processor, tokenizer, template and licence files.

What the source has is kept byte for byte, except config.json, which must be true of the new weights, references to
code, and a patch budget too small for the views that the limits beside it allow; what is missing is added where it can
be known. Code and other people's weights are never copied.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import GenerationConfig, Lfm2VlConfig, ProcessorConfig, read_json
from ..config.files import CODE, check_own, without
from ..hub import LICENCES
from ..processing.tokenizer import Tokenizer
from ..weights.head import TIED
from ..weights.save import write_json

NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

PROCESSOR_CLASS = "Lfm2VlProcessor"

QUANTISATION = ("quantization", "quantization_config")
JSON_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json")
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
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def copy(file: Path, target: Path) -> None:
    """Copies a file of a model folder. Raises `OutputError` for one that `check_own` refuses."""
    check_own(file)
    shutil.copyfile(file, target)


def write_config_files(source: Path, target: Path, config: Lfm2VlConfig) -> None:
    """Copies and completes everything but config.json, weights and card."""
    licences = [path.name for pattern in LICENCES for path in sorted(source.glob(pattern))]
    for name in (*NAMES, *licences):
        if (source / name).is_file():
            copy(source / name, target / name)
    for name in JSON_FILES:
        if (target / name).is_file() and (data := read_json(target / name)) != (plain := without(data)):
            write_json(target / name, plain)
    processor = ProcessorConfig.from_folder(target)
    for name in PROCESSOR_FILES:
        if (target / name).is_file() and (data := read_json(target / name)) != (
            enough := with_budget(data, processor, only_raise=True)
        ):
            write_json(target / name, enough)
    if not any((target / name).is_file() for name in PROCESSOR_FILES):
        write_json(target / "processor_config.json", ProcessorConfig.from_folder(source).to_dict())
    first = next(name for name in reversed(PROCESSOR_FILES) if (target / name).is_file())
    if (data := read_json(target / first)) != (enough := for_swift(data, processor)):
        write_json(target / first, enough)
    if (generation := generation_json(source, config)) is not None:
        write_json(target / "generation_config.json", generation)


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


def generation_json(source: Path, config: Lfm2VlConfig) -> dict[str, Any] | None:
    """generation_config.json with what the source's lacks: end tokens, and the makers' sampling for a model of theirs.
    None if there is nothing to add."""
    file = source / "generation_config.json"
    before: dict[str, Any] = without(read_json(file)) if file.is_file() else {}
    out = dict(before)
    text = config.text_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(text, name)
        if out.get(name) is None and value is not None:
            several = isinstance(value, tuple) and len(value) > 1
            out[name] = list(value) if several else value[0] if isinstance(value, tuple) else value
    own = Tokenizer.from_folder(source).eos_token_id if (source / "tokenizer.json").is_file() else None
    ends = GenerationConfig.from_dict(out, str(file)).end_tokens(config, own)
    if len(ends) > 1:  # all that any file names, for readers of this one alone
        out["eos_token_id"] = ends
    if all(out.get(name) is None for name in SAMPLING):
        makers = GenerationConfig().recommended(config)
        if makers.do_sample:
            out |= {name: getattr(makers, name) for name in SAMPLING if getattr(makers, name) is not None}
    return out if out != before else None


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


def config_json(
    original: dict[str, Any],
    config: Lfm2VlConfig,
    dtype: mx.Dtype,
    quantization: dict[str, Any] | None,
    layout: str = "mlx",
) -> dict[str, Any]:
    """The source's config.json with what is true of the new weights: dtype, quantisation, a tied head, layers of the
    tower, width of the feed-forward. Code references and paths of the source are dropped; torch's layouts get the
    current model type, MLX's the widths of the text model in all of its spellings."""
    out = without(original, (*CODE, *QUANTISATION))
    name = str(dtype).removeprefix("mlx.core.")
    for section in (out, out.get("text_config"), out.get("vision_config")):
        if isinstance(section, dict):
            section.update({key: name for key in ("dtype", "torch_dtype") if key in section})
    if "torch_dtype" not in out:
        out["dtype"] = name
    vision, text = dict(out.get("vision_config") or {}), dict(out.get("text_config") or {})
    vision["num_hidden_layers"] = config.vision_config.num_hidden_layers
    if Lfm2VlConfig.from_dict(original).text_config.feed_forward_size != config.text_config.feed_forward_size:
        text.pop("block_ff_dim", None)
        text.update(intermediate_size=config.text_config.feed_forward_size, block_auto_adjust_ff_dim=False)
    tied = config.tie_word_embeddings
    if not tied or any(key in section for section in (out, text) for key in TIED):
        for section in (out, text):  # readers look into one or the other
            section.update({key: tied for key in TIED if key in section} | {TIED[-1]: tied})
    if layout == "mlx":
        spell_out(out, text, vision, config)
    out.update(vision_config=vision, text_config=text)
    if layout != "mlx":
        out.update(model_type="lfm2_vl", image_token_id=config.image_token_id)
    if quantization is not None:
        out["quantization"] = out["quantization_config"] = quantization
    return out
