"""Chat templates rendered, and text encoded and decoded, by the reference."""

from typing import Any

import jinja2

from .pictures import draw

_USER: dict[str, Any] = {"role": "user", "content": "Où est le carré?"}
_CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer with one word."},
    {"role": "user", "content": [{"type": "text", "text": "How many shapes "}, {"type": "text", "text": "are there?"}]},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "漢字 and 🦊"},
]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Findet Größen <b>&</b> 'Farben' 🦊",
            "parameters": {"type": "object", "properties": {"size": {"type": "number", "enum": [1, 2.5, None, True]}}},
        },
    }
]
_CALL = {"name": "find", "arguments": {"size": 2.5, "colours": ["rot", "grün"], "exact": True, "n": None}}

# name, template, messages, other arguments. No template writes a digit of a date: only its format is fixed.
TEMPLATES: list[tuple[str, str, list[dict[str, Any]], dict[str, Any]]] = [
    (
        "blocks on lines of their own",
        "{% for message in messages %}\n    {% if message.role == 'user' %}\n[{{ message.content }}]\n    {% endif %}\n"
        "{% endfor %}\nend\n",
        [_USER, _USER],
        {},
    ),
    ("special tokens", "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ unknown }}|", [_USER], {}),
    ("date", "{{ strftime_now('on day %%d') }} {{ strftime_now('%Y-%m-%d') | length }}", [_USER], {}),
    ("exception", "{{ raise_exception('no role ' ~ messages[0].role) }}", [_USER], {}),
    ("undefined attribute", "{{ messages[0].nothing.more }}", [_USER], {}),
    ("sandbox, methods", "{{ messages.append(1) }}", [_USER], {}),
    ("sandbox, classes", "{{ ''.__class__.__mro__ }}", [_USER], {}),
    ("sandbox, namespace", "{% set ns = namespace(_hidden=1) %}{{ ns._hidden }}", [_USER], {}),
    ("tools", "{% if tools %}{{ tools | tojson }}{% else %}none{% endif %}", [_USER], {"tools": _TOOLS}),
    ("no tools", "{% if tools %}{{ tools | tojson }}{% else %}none{% endif %}", [_USER], {}),
    (
        "tojson",
        "{{ messages[1].tool_calls[0] | tojson }}\n{{ messages[1].tool_calls | tojson(indent=2) }}\n"
        "{{ messages | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}",
        [_USER, {"role": "assistant", "tool_calls": [_CALL]}],
        {},
    ),
    ("tojson in text", "{{ '<a href=\"x\">' | tojson }}{{ '<&>' }}", [_USER], {}),
    (
        "content null is as if absent",
        "{% for m in messages %}{{ m.content is defined }},{{ 'tool_calls' in m }};{% endfor %}",
        [_USER, {"role": "assistant", "content": None, "tool_calls": [_CALL]}],
        {},
    ),
    (
        "break and continue",
        "{% for n in range(9) %}{% if n is odd %}{% continue %}{% endif %}{% if n > 5 %}{% break %}{% endif %}{{ n }}"
        "{% endfor %}",
        [_USER],
        {},
    ),
    (
        "macro and namespace",
        "{%- macro twice(x, y='!') -%}{{ x ~ x ~ y }}{%- endmacro -%}{%- set ns = namespace(last='', count=0) -%}"
        "{%- for m in messages -%}{%- set ns.last = m.role -%}{%- set ns.count = ns.count + 1 -%}{%- endfor -%}"
        "{{ twice(ns.last) }}{{ twice(ns.count, y='') }}",
        _CHAT,
        {},
    ),
    (
        "macro with generation",
        "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ caller() }}<|im_end|>\n{% endmacro %}{% for m in messages %}"
        "{% call turn(m) %}{{ m.content if m.content is string else m.content | map(attribute='text') | join }}"
        "{% endcall %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        _CHAT,
        {"add_generation_prompt": True},
    ),
    (
        "filters and tests",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[0].content | upper }} "
        "{{ messages[-1].content.split(' ')[0] }} {{ messages[1].content is string }} {{ messages[1] is mapping }} "
        "{{ messages[1:] | map(attribute='role') | join(',') }} {{ 'x' * 3 }} {{ dict(a=1).items() | list }}",
        _CHAT,
        {},
    ),
    (
        "other variables",
        "{{ language | default('none') }} {{ 'deep' if enable_thinking else 'flat' }} {{ add_generation_prompt }}",
        [_USER],
        {"language": "Français", "enable_thinking": True},
    ),
    (
        "reasoning under other names",
        "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};{% endfor %}",
        [
            {"role": "assistant", "content": "a", "thinking": "x"},
            {"role": "assistant", "content": "b", "reasoning": "y"},
        ],
        {},
    ),
]
_TAGS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{% set text = m.content if m.content is string "
    "else m.content | map(attribute='text') | join %}{% if m.role == 'assistant' %}{%- generation %}{{ text }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ text }}<|im_end|>{% endif %}\n\n{% endfor %}"
)
# The same, with a mask of the assistant's tokens; None stands for gen25's own template.
MASKED: list[tuple[str, str | None, list[dict[str, Any]], dict[str, Any]]] = [
    ("generation blocks", _TAGS, _CHAT, {}),
    ("generation blocks, no answer", _TAGS, [_USER], {}),
    ("generation blocks, own template", None, _CHAT, {}),
    (
        "generation blocks after a picture",
        None,
        [
            {
                "role": "user",
                "content": [{"type": "image", "picture": "small"}, {"type": "text", "text": "What is it?"}],
            },
            {"role": "assistant", "content": "a square"},
        ],
        {},
    ),
    ("no generation blocks", "{% for m in messages %}{{ m.role }}{% endfor %}", _CHAT, {}),
]
# gen25's template
OWN: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    ("system, tools and prompt", _CHAT[:2], {"tools": _TOOLS, "add_generation_prompt": True}),
    ("tools without system", [_USER], {"tools": _TOOLS}),
    ("unknown role", [{"role": "developer", "content": "x"}], {}),
    ("continued answer", [*_CHAT[:4], {"role": "assistant", "content": "I think "}], {"continue_final_message": True}),
    (
        "continued parts",
        [_USER, {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}],
        {"continue_final_message": True},
    ),
    ("empty answer", [_USER, {"role": "assistant", "content": ""}], {}),
]


def templates(processor: Any) -> dict[str, Any]:
    """{"rendered": [...], "masked": [...]}, entries with

    template            null: the processor's own
    messages, arguments of apply_chat_template
    text                or `error` (the exception's class) and `message`
    input_ids, assistant_masks  of the masked ones, which have as many image tokens as the picture; the text has one
    """
    rendered = [_render(processor, *entry) for entry in TEMPLATES]
    rendered += [_render(processor, name, None, messages, arguments) for name, messages, arguments in OWN]
    return {"rendered": rendered, "masked": [_mask(processor, *entry) for entry in MASKED]}


def _render(
    processor: Any, name: str, template: str | None, messages: list[dict[str, Any]], arguments: dict[str, Any]
) -> dict[str, Any]:
    entry = {"name": name, "template": template, "messages": messages, "arguments": arguments}
    try:
        text = processor.apply_chat_template(messages, chat_template=template, **arguments)
    except jinja2.TemplateError as error:
        return entry | {"error": type(error).__name__, "message": str(error)}
    return entry | {"text": text}


def _mask(
    processor: Any, name: str, template: str | None, messages: list[dict[str, Any]], arguments: dict[str, Any]
) -> dict[str, Any]:
    with_pictures = [
        turn if isinstance(turn["content"], str) else turn | {"content": [_draw(part) for part in turn["content"]]}
        for turn in messages
    ]
    made = processor.apply_chat_template(
        with_pictures,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **arguments,
    )
    entry = _render(processor, name, template, messages, arguments)
    return entry | {key: made[key][0] for key in ("input_ids", "assistant_masks")}


def _draw(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image", "image": draw(part["picture"])} if "picture" in part else part


TEXTS = [
    "",
    " ",
    "What is in this picture?",
    "  two  spaces,\ttabs\tand\n\nlines \r\n",
    "Übergrößenträger naïve café",
    "e\u0301 is not \u00e9",
    "漢字かな交じり文",
    "Привет, мир! مرحبا بالعالم",
    "🦊 👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    "12 345 678901 3.14 1e-5",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<image>b<|img_row_1_col_10|><|img_thumbnail|><|image_end|>",
    "<|im_start |> <| im_end|> <image",
    "do n't , isn 't . Is it ? We 've !",
    "zero\u200bwidth, no\u00a0break, \ufeffmark, \x00null \x1bescape",
    "𝒞𝑜𝓂𝓅𝓁𝑒𝓍 \U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]
# Ids that no text gives: half a character, a continuation byte alone, special tokens in a row, an id a batch apart.
_RAW_IDS = [[1, 6, 397, 498, 396, 396, 499, 7, 0, 0], [582, 500], [500, 501, 502], []]


def tokens(tokenizer: Any) -> dict[str, Any]:
    """{"encode": [{text, ids, ids_with_special_tokens, pieces}], "decode": [{ids, text, text_without_special_tokens}],
    "batch_decode": {ids, texts, texts_without_special_tokens}}; `pieces` are what the ids decode to one by one.
    """
    encode, decode = [], []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        encode.append({"text": text, "ids": ids, "ids_with_special_tokens": tokenizer(text)["input_ids"]})
        encode[-1]["pieces"] = tokenizer.convert_ids_to_tokens(ids)
    rows = [entry["ids_with_special_tokens"] for entry in encode] + _cut(encode) + _RAW_IDS
    for ids in rows:
        without = tokenizer.decode(ids, skip_special_tokens=True)
        decode.append({"ids": ids, "text": tokenizer.decode(ids), "text_without_special_tokens": without})
    return {
        "encode": encode,
        "decode": decode,
        "batch_decode": {
            "ids": rows,
            "texts": tokenizer.batch_decode(rows),
            "texts_without_special_tokens": tokenizer.batch_decode(rows, skip_special_tokens=True),
        },
    }


def _cut(encode: list[dict[str, Any]]) -> list[list[int]]:
    """The ids of the emoji cut after 1, 2, ... tokens: decoding meets incomplete characters."""
    ids = next(entry["ids"] for entry in encode if entry["text"].startswith("🦊"))
    return [ids[:count] for count in range(1, 12)]
