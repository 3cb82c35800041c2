"""Everything of the demo model's folder but its weights: tokenizer, chat template, configuration, processor files.

Contract: ``write(folder)`` is deterministic; training and export use the same files, so a checkpoint that was trained
with them stays valid as long as they do not change.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from .vocabulary import BOS, IM_END, IMAGE, PAD, VOCAB_SIZE, tokenizer

TEXT_CONFIG: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 512,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention"] * 3,
    "conv_L_cache": 3,
    "max_position_embeddings": 4096,
    "bos_token_id": BOS,
    "eos_token_id": IM_END,
    "pad_token_id": PAD,
}
VISION_CONFIG: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_patches": 64,
    "patch_size": 16,
    "vision_use_head": False,
}
PROJECTOR = {"projector_hidden_size": 512, "projector_use_layernorm": True, "projector_bias": True}

# One picture's budget is 16 tokens (128x128 pixels); fewer are allowed, so that 96x160 or 96x96 keep their size.
IMAGE_PROCESSOR = {
    "image_processor_type": "Lfm2VlImageProcessor",
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "downsample_factor": 2,
    "encoder_patch_size": 16,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": 16,
    "max_num_patches": 64,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 4,
    "min_image_tokens": 9,
    "min_tiles": 2,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "return_row_col_info": False,
    "size": {"height": 128, "width": 128},
    "tile_size": 128,
    "use_thumbnail": True,
}

CHAT_TEMPLATE = r"""{{- bos_token -}}
{%- set turns = messages -%}
{%- set instructions = "" -%}
{%- if messages and messages[0].role == "system" -%}
    {%- set turns = messages[1:] -%}
    {%- if messages[0].content is string -%}
        {%- set instructions = messages[0].content -%}
    {%- else -%}
        {%- set texts = messages[0].content | selectattr("type", "equalto", "text") -%}
        {%- set instructions = texts | map(attribute="text") | join -%}
    {%- endif -%}
{%- endif -%}
{%- if tools -%}
    {%- set listed = "List of tools: " ~ (tools | tojson) -%}
    {%- set instructions = instructions ~ "\n" ~ listed if instructions else listed -%}
{%- endif -%}
{%- if instructions -%}
    {{- "<|im_start|>system\n" ~ instructions ~ "<|im_end|>\n" -}}
{%- endif -%}
{%- macro body(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for item in content -%}
            {%- if item.type == "image" -%}
                {{- "<image>" -}}
            {%- elif item.type == "text" -%}
                {{- item.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in turns -%}
    {{- "<|im_start|>" ~ message.role ~ "\n" -}}
    {%- if message.role == "assistant" -%}
        {%- generation -%}
            {{- body(message.content) ~ "<|im_end|>" -}}
        {%- endgeneration -%}
        {{- "\n" -}}
    {%- else -%}
        {{- body(message.content) ~ "<|im_end|>\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\n" -}}
{%- endif -%}
"""


def config() -> dict:
    """config.json, as the reference reads it and the hub's repositories write it."""
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "dtype": "bfloat16",
        "image_token_id": IMAGE,
        "downsample_factor": 2,
        "projector_hidden_act": "gelu",
        **PROJECTOR,
        "tie_word_embeddings": True,
        "text_config": TEXT_CONFIG,
        "vision_config": VISION_CONFIG,
    }


def write(folder: pathlib.Path) -> None:
    """Writes every file but model.safetensors and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    files = {
        "config.json": config(),
        "generation_config.json": {
            "bos_token_id": BOS,
            "do_sample": False,
            "eos_token_id": IM_END,
            "pad_token_id": PAD,
        },
        "processor_config.json": {
            "image_processor": IMAGE_PROCESSOR,
            "processor_class": "Lfm2VlProcessor",
            "use_image_special_tokens": True,
        },
        "tokenizer_config.json": {
            "bos_token": "<|startoftext|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "extra_special_tokens": {
                "image_end_token": "<|image_end|>",
                "image_start_token": "<|image_start|>",
                "image_thumbnail": "<|img_thumbnail|>",
                "image_token": "<image>",
            },
            "model_max_length": TEXT_CONFIG["max_position_embeddings"],
            "pad_token": "<|pad|>",
            "processor_class": "Lfm2VlProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
