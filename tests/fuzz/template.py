"""Chat templates: compiled and rendered with turns, pictures, tools and thoughts."""

from __future__ import annotations

import functools
import json
import random
import re
from typing import Any

from mlx_lfm2vl.errors import TemplateError
from mlx_lfm2vl.processing.template import ChatTemplate

from .folders import DEMO, GOLDEN, FolderEntrance, place

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cat.", "thinking": "hm"},
    {"role": "user", "content": "And this?"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
MADE = (
    "{% set a = 'xxxxxxxx' %}{% set a = a ~ a %}{% set a = [a, a] %}{{ a | tojson(indent=2) }}",
    "{% macro f(n) %}{% for i in range(n) %}{{ f(n - 1) }}{% endfor %}{% endmacro %}{{ f(4) }}",
    "{{ '%5d|%s' % (3, 4) }}{{ '{0:{1}}'.format(1, 8) }}{{ 'a\\nb' | indent(4) | replace('a', 'bb') | center(20) }}",
    "{% set ns = namespace(n=2) %}{% for i in range(4) %}{% set ns.n = ns.n * ns.n ** 2 %}{% endfor %}{{ ns.n }}",
    "{% generation %}{{ messages | map(attribute='role') | join(', ') }}{% endgeneration %}{{ [1, 2] * 3 | sum }}",
)
PIECES = (
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{%-",
        "-%}",
        "{#",
        "#}",
        "for i in range(9)",
        "endfor",
        "if true",
        "endif",
        "loop.index",
    ),
    *(
        "a[1:]",
        ".encode()",
        "namespace(x=a)",
        "{0.x}",
        "varargs",
        ".items()",
        ".mapping",
        "| string",
        "loop",
        "self.b()",
    ),
    *("set a = a ~ a", "set a = [a, a]", "set a = a + a", "set a = a * a", "{% set a = 'ab' %}", "{{ a }}", "a ** 9"),
    *(
        "macro f()",
        "endmacro",
        "f()",
        "call f()",
        "endcall",
        "filter upper",
        "endfilter",
        "generation",
        "endgeneration",
    ),
    *(
        "| join(a)",
        "| replace('', a)",
        "| tojson",
        "| indent(99)",
        "| batch(3, a)",
        "| list",
        "| map('upper')",
        "| sum",
    ),
    *(
        "| center(1000000)",
        ".format(a)",
        "% a",
        "| format(a)",
        ".split('')",
        "['__class__']",
        ".__class__",
        "| attr('x')",
    ),
    *(
        "999999999",
        "-1",
        "1e308",
        "'",
        '"',
        "(",
        ")",
        "[",
        "]",
        "not ",
        "is defined",
        "in",
        "recursive",
        "break",
        "\\ud800",
    ),
)


@functools.cache
def seeds() -> dict[str, bytes]:
    rendered = json.loads((GOLDEN / "templates.json").read_text(encoding="utf-8"))["rendered"]
    texts = {case["template"]: None for case in rendered if isinstance(case.get("template"), str)}
    made = {f"golden {number}": text.encode() for number, text in enumerate(texts)}
    made |= {f"made {number}": text.encode() for number, text in enumerate(MADE)}
    made["demo"] = (DEMO / "chat_template.jinja").read_bytes()
    return {name: data for name, data in made.items() if _accepted(data)}


def _accepted(data: bytes) -> bool:
    """Some of the frozen cases refuse conversations on purpose."""
    try:
        return run(data) >= 0
    except TemplateError:
        return False


def change(data: bytes, rng: random.Random) -> bytes:
    """Words of the language taken out, moved, repeated and put in."""
    words = re.findall(r"\w+|\s+|[{}%#-]{2,3}|.", data.decode(), re.DOTALL)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(words))
        kind = rng.randrange(4)
        if kind == 0 and len(words) > 1:
            del words[at]
        elif kind == 1:
            words.insert(at, rng.choice(PIECES))
        elif kind == 2:
            words[at:at] = words[at : at + rng.choice((1, 4, 30))] * rng.choice((1, 1, 5, 40))
        else:
            words[at] = rng.choice([rng.choice(PIECES), rng.choice(words)])
    return "".join(words).encode()


def run(data: bytes) -> int:
    length = 0
    try:
        template = ChatTemplate.from_folder(place("template", "chat_template.jinja", data), None, {"bos_token": "<s>"})
        given: tuple[dict[str, Any], ...] = ({}, {"tools": TOOLS, "add_generation_prompt": True})
        for options in given:
            rendered = template.render(CONVERSATION, **options)
            assert all(0 <= start <= end <= len(rendered.text) for start, end in rendered.generation_spans)
            length += len(rendered.text)
    except TemplateError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
        raise
    return length


ENTRANCE = FolderEntrance("template", seeds, run, (TemplateError,), seconds=15.0, megabytes=512, change=change)
