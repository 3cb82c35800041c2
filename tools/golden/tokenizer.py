"""A byte-level BPE tokenizer with the 65,536 family's special tokens at their ids, and chat templates of our own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

_NAMED = [
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    *(f"<|fim_{part}|>" for part in ("pre", "mid", "suf")),
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|tool_{kind}_{side}|>" for kind in ("list", "call", "response") for side in ("start", "end")),
]
SPECIAL_TOKENS = [
    *_NAMED,
    *(f"<|reserved_{i}|>" for i in range(len(_NAMED), 396)),
    "<image>",
    *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)),
    "<|img_thumbnail|>",
    "<|image_start|>",
    "<|image_end|>",
]
SPECIAL_IDS = {token: i for i, token in enumerate(SPECIAL_TOKENS)}

_CORPUS = """What is in this picture? Describe the image. The picture shows a red square, a blue circle and a green
triangle on the left, on the right, above and below. There are two, three or four shapes in the image. Compare these
pictures. How many shapes are there? The small one is near the large one. Answer with one word. Please read the text
and write it down in one line. The answer is that they are the same colour.""".replace("\n", " ")

TEMPLATES = {
    "gen2": """{{- bos_token -}}
{%- for message in messages -%}
    {{- "<|im_start|>" ~ message["role"] ~ "\\n" -}}
    {%- if message["content"] is string -%}
        {{- message["content"] -}}
    {%- else -%}
        {%- for part in message["content"] -%}
            {%- if part["type"] == "image" -%}
                {{- "<image>" -}}
            {%- elif part["type"] == "text" -%}
                {{- part["text"] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
""",
    "gen25": """{%- macro flat(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {{- "<image>" if part.type == "image" else part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set state = namespace(system="", turns=messages) -%}
{%- if messages and messages[0].role == "system" -%}
    {%- set state.system = flat(messages[0].content) -%}
    {%- set state.turns = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set state.system = state.system ~ ("\\n\\n" if state.system else "") ~ "Tools: " ~ (tools | tojson) -%}
{%- endif -%}
{%- if state.system -%}
    {{- "<|im_start|>system\\n" ~ state.system ~ "<|im_end|>\\n" -}}
{%- endif -%}
{%- for turn in state.turns -%}
    {%- if turn.role not in ("user", "assistant", "tool") -%}
        {{- raise_exception("unknown role: " ~ turn.role) -}}
    {%- endif -%}
    {{- "<|im_start|>" ~ turn.role ~ "\\n" -}}
    {%- if turn.role == "assistant" -%}
        {%- generation -%}
            {{- flat(turn.content) ~ "<|im_end|>" -}}
        {%- endgeneration -%}
        {{- "\\n" -}}
    {%- else -%}
        {{- flat(turn.content) ~ "<|im_end|>\\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
""",
}
TEMPLATES["untied"] = TEMPLATES["gen2"]


LFM3_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
    {{- "<|im_start|>" ~ message["role"] ~ "\\n" -}}
    {%- if message["content"] is string -%}
        {{- message["content"] -}}
    {%- else -%}
        {%- for part in message["content"] -%}
            {%- if part["type"] in ("image", "video") -%}
                {{- "<|vision_start|><|" ~ part["type"] ~ "_pad|><|vision_end|>" -}}
            {%- elif part["type"] == "text" -%}
                {{- part["text"] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


TEXT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- set content = message["content"] -%}
    {%- if content is not string -%}
        {%- set content = content | tojson -%}
    {%- endif -%}
    {{- "<|im_start|>" + message["role"] + "\\n" + content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


def write_tokenizer(name: str, vocab_size: int, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja in the style of checkpoint `name`.

    What `vocab_size` has above the tokens that the corpus gives decodes to words that no text encodes to.
    """
    tokenizer = _trained(SPECIAL_TOKENS, vocab_size)
    if name == "gen2":
        bos = "<|startoftext|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, SPECIAL_IDS[bos])]
        )
    config = {
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": name == "gen25",
        "eos_token": "<|im_end|>",
        "image_end_token": "<|image_end|>",
        "image_start_token": "<|image_start|>",
        "image_thumbnail": "<|img_thumbnail|>",
        "image_token": "<image>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<|pad|>",
        "processor_class": "Lfm2VlProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast" if name == "gen2" else "TokenizersBackend",
    }
    _write(tokenizer, config, TEMPLATES[name], folder)


def write_lfm3_tokenizer(special_tokens: Sequence[str], vocab_size: int, folder: Path) -> None:
    """Writes the files of `write_tokenizer` in the style of LFM3-VL, with these special tokens first."""
    config = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "image_token": "<|image_pad|>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<|pad|>",
        "processor_class": "Lfm3VlProcessor",
        "tokenizer_class": "TokenizersBackend",
        "video_token": "<|video_pad|>",
        "vision_end_token": "<|vision_end|>",
        "vision_start_token": "<|vision_start|>",
    }
    _write(_trained(special_tokens, vocab_size), config, LFM3_TEMPLATE, folder)


def write_text_tokenizer(special_tokens: Sequence[str], vocab_size: int, folder: Path) -> None:
    """Writes the files of `write_tokenizer` in the style of text models, with these special tokens first."""
    config = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(_trained(special_tokens, vocab_size), config, TEXT_TEMPLATE, folder)


def _trained(special_tokens: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    if (learnt := tokenizer.get_vocab_size()) < vocab_size:
        state = json.loads(tokenizer.to_str())
        state["model"]["vocab"] |= {f"Ġw{i}": i for i in range(learnt, vocab_size)}
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def _write(tokenizer: Tokenizer, config: dict[str, Any], template: str, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
