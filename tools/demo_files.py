"""Everything of the demo model's folder but its weights: tokenizer, chat template, configuration, processor files.

Contract: ``write(folder)`` is deterministic; training and export use the same files, so a checkpoint that was trained
with them stays valid as long as they do not change. Special-token ids are those of the 65k family (pad 0, bos 1,
im_end 7, image 396, tile markers 397 to 496, thumbnail 497, image start and end 498 and 499). Digits and capitals are
one token each, and so are the coordinates of boxes; any text encodes, through bytes where no word is known.
"""

from __future__ import annotations

import json
import pathlib

from demo_tasks import COLOURS, DESCRIBE, PLACES, SHAPES, SIZES, plural
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# Coordinates of boxes, in thousandths of a side, are told in tens: 0 to 1000. Those of several digits come last in the
# vocabulary.
COORDINATES = tuple(str(10 * n) for n in range(101))
WORDS_SIZE = 1280
VOCAB_SIZE = WORDS_SIZE + len(COORDINATES) - 1
PAD, BOS, IM_START, IM_END, IMAGE, IMAGE_START, IMAGE_END = 0, 1, 6, 7, 396, 498, 499

TEXT_CONFIG = {
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
VISION_CONFIG = {
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

# Words that must be one token each: those of the tasks, and those of tasks and chats that may come later.
_WORDS = """
there is are a an the and in at of to left right above below top bottom centre middle corner edge nothing none yes no
not what which where how many much big small large colour color shape object objects image images picture pictures
text word letter letters number numbers digit digits see do does describe this that it its these read written says say
show shows find point count compare different same both more less than all only one two three four five six seven
eight nine ten zero first second third last next provide bounding box boxes for please give list every each between
beside near far inside outside line lines label labels page table chart big bigger smaller larger biggest smallest
light dark white grey gray brown background handwritten sign card with without has have you your can me my be was on
as from by or if so up down empty blank user assistant system tool tools you are helpful multimodal Liquid json array
answer question hello hi thanks thank sorry know left-hand right-hand who name model demo
"""
_SENTENCES = (
    "There is no text.",
    "Read the text.",
    "What does it say?",
    "Which digit is this?",
    "Which letter is this?",
    "Which image shows a red circle?",
    "Media-1 Media-2 Media-3 Media-4: Image 1, image 2",
    "Provide bounding boxes for the red circle.",
    "You are a helpful multimodal assistant by Liquid AI.",
    "More than 9.",
    "Is there a circle? Yes. No. Nothing. None. Both. Neither.",
    "Where is it? How big is it? What is it? Does it have one?",
    "They are the same. They are different. It is a large red circle.",
    "The first. The second. The third. In the centre. At the top left. A small ring.",
    '[{"image_id": 0, "bbox_2d": [12, 34, 567, 890], "label": "red circle"}, '
    '{"image_id": 1, "bbox_2d": [1, 2, 3, 4], "label": "star"}]',
    "image_index=0 text [12, 34, 567, 890]",
)


def _corpus() -> list[str]:
    words = _WORDS.split() + list(COLOURS) + list(SHAPES) + list(SIZES) + [plural(s) for s in SHAPES]
    starts = [
        w.capitalize()
        for w in (
            *COLOURS,
            *SIZES,
            "what",
            "where",
            "how",
            "is",
            "which",
            "describe",
            "the",
            "there",
            "at",
            "in",
            "a",
            "an",
        )
    ]
    starts += [
        "Yes",
        "No",
        "Nothing",
        "Read",
        "Media",
        "Image",
        " many",
        " shape",
        " objects",
        " big",
        " than",
        " You",
        " More",
    ]
    lines = [f" {w}" for w in words] + [w for w in ("user", "assistant", "system", "tool", *SHAPES, *COLOURS)]
    return [*lines, *_SENTENCES] * 2 + [*starts, *DESCRIBE, *(f" {p}" for p in PLACES)] * 10


def special_tokens() -> list[str]:
    """The 500 special tokens in the order of their ids."""
    named = [
        "<|pad|>",
        "<|startoftext|>",
        "<|endoftext|>",
        "<|fim_pre|>",
        "<|fim_mid|>",
        "<|fim_suf|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    named += [f"<|tool_{part}_{end}|>" for part in ("list", "call", "response") for end in ("start", "end")]
    named += [f"<|reserved_{i}|>" for i in range(IMAGE - len(named))]
    named += ["<image>"] + [f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)]
    return [*named, "<|img_thumbnail|>", "<|image_start|>", "<|image_end|>"]


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tokenizer() -> Tokenizer:
    """A byte-level BPE: JSON keys and separators in one piece, digits apart but within brackets, words with the space
    before them.
    """
    keys, ends = r'(?:, \{|, |\[?\{)?"[\p{L}\p{N}_]+": ?', r'"?[\]}](?=,)'
    words = r"\p{N}|, (?=\p{N})| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = _split(rf"{keys}|{ends}|{words}")
    tok.decoder = decoders.ByteLevel()
    specials = [AddedToken(s, special=True, normalized=False) for s in special_tokens()]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS_SIZE,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(_corpus(), trainer)
    state = json.loads(tok.to_str())
    state["model"]["vocab"] |= {number: WORDS_SIZE + n for n, number in enumerate(COORDINATES[1:])}
    state["model"]["ignore_merges"] = True  # a piece that is in the vocabulary is one token
    tok = Tokenizer.from_str(json.dumps(state))
    coordinate = r"(?<=\[|, )[1-9]\p{N}*0(?=[,\]])"
    tok.pre_tokenizer = _split(rf"{keys}|{ends}|{coordinate}|{words}")
    tok.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", pair="<|startoftext|> $A $B", special_tokens=[("<|startoftext|>", BOS)]
    )
    return tok


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
