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

from ..config import CausalLMConfig, GenerationConfig, ModelConfig, config_of, read_json
from ..config.causal_lm import bare
from ..config.files import CODE, QUANTISATION, check_own, without
from ..hub import LICENCES
from ..processing.tokenizer import Tokenizer
from ..weights.head import TIED
from ..weights.save import write_json
from .families import RULES
from .lfm2_files import PROCESSOR_FILES

NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
)

JSON_FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer_config.json", "generation_config.json"),
)
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def copy(file: Path, target: Path) -> None:
    """Copies a file of a model folder. Raises `OutputError` for one that `check_own` refuses."""
    check_own(file)
    shutil.copyfile(file, target)


def write_config_files(source: Path, target: Path, config: ModelConfig) -> None:
    """Copies and completes everything but config.json, weights and card."""
    licences = [path.name for pattern in LICENCES for path in sorted(source.glob(pattern))]
    for name in (*NAMES, *licences):
        if (source / name).is_file():
            copy(source / name, target / name)
    for name in JSON_FILES:
        if (target / name).is_file() and (data := read_json(target / name)) != (plain := without(data)):
            write_json(target / name, plain)
    rules = RULES[type(config)]
    needed = not isinstance(config, CausalLMConfig)
    if needed and not any((target / name).is_file() for name in PROCESSOR_FILES):
        write_json(target / "processor_config.json", rules.processor.from_folder(source).to_dict())
    rules.complete_processor(target)
    if (generation := generation_json(source, config)) is not None:
        write_json(target / "generation_config.json", generation)


def generation_json(source: Path, config: ModelConfig) -> dict[str, Any] | None:
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
        makers = GenerationConfig().recommended(text)
        if makers.do_sample:
            out |= {name: getattr(makers, name) for name in SAMPLING if getattr(makers, name) is not None}
    return out if out != before else None


def config_json(
    original: dict[str, Any],
    config: ModelConfig,
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
    alone = isinstance(config, CausalLMConfig)  # all of a text model stands at the top level
    text = out if alone else dict(out.get("text_config") or {})
    width, tied = config.text_config.feed_forward_size, config.tie_word_embeddings
    if config_of(original).text_config.feed_forward_size != width:
        text.pop("block_ff_dim", None)
        text.update(intermediate_size=width, block_auto_adjust_ff_dim=False)
    sections = [out] if alone else [out, text]  # readers look into one or the other
    if not tied or any(key in section for section in sections for key in TIED):
        for section in sections:
            section.update({key: tied for key in TIED if key in section} | {TIED[-1]: tied})
    if not isinstance(config, CausalLMConfig):
        vision = {**(out.get("vision_config") or {}), "num_hidden_layers": config.vision_config.num_hidden_layers}
        if layout == "mlx":
            RULES[type(config)].spell_out(out, text, vision, config)
        out.update(vision_config=vision, text_config=text)
        if layout != "mlx":
            out.update(model_type=config.model_type, image_token_id=config.image_token_id)
    if quantization is not None:
        said = {bare(name): value for name, value in quantization.items()} if alone else quantization
        out["quantization"] = out["quantization_config"] = said
    return out
