"""Chat templates render as the reference renders them, bounded and walled in, and say what is wrong in one line."""

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from enum import Enum

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.errors import TemplateError
from mlx_lfm2vl.processing import sandbox
from mlx_lfm2vl.processing.processor import Lfm2VlProcessor
from mlx_lfm2vl.processing.sandbox import tojson
from mlx_lfm2vl.processing.template import TOKENIZER_PLACES, ChatTemplate

TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>"}
# m39 calls m38 twice, which calls m37 twice, ...
DOUBLING = (
    "{% macro m0() %}{% endmacro %}"
    + "".join(f"{{% macro m{i}() %}}{{{{ m{i - 1}() ~ m{i - 1}() }}}}{{% endmacro %}}" for i in range(1, 40))
    + "{{ m39() }}"
)
LONG = "{% set a = 'x' * 15999990 %}"
USER = [{"role": "user", "content": "Hi"}]
_ENTRIES = json.loads((GOLDEN / "templates.json").read_text(encoding="utf-8"))


def refused(source: str, messages=USER, **options) -> str:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, TOKENS).render(messages, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def render(source: str, messages=USER, **options) -> str:
    return ChatTemplate(source, TOKENS).render(messages, **options).text


@pytest.fixture(scope="module")
def processor():
    return Lfm2VlProcessor.from_pretrained(GOLDEN / "gen25")


@pytest.mark.parametrize("case", _ENTRIES["rendered"], ids=lambda case: case["name"])
def test_renders_as_the_reference(case, processor):
    if "error" in case:
        with pytest.raises(TemplateError) as caught:
            processor.apply_chat_template(case["messages"], chat_template=case["template"], **case["arguments"])
        if case["error"] == "TemplateError":
            assert case["message"] in str(caught.value)
    else:
        text = processor.apply_chat_template(case["messages"], chat_template=case["template"], **case["arguments"])
        assert text == case["text"]


def test_joining_takes_what_filters_yield():
    assert render("{{ ', '.join(messages | map(attribute='role')) }}") == "user"
    assert render("{{ ['a', 'b'] | map('upper') | join('-') ~ 1 }}") == "A-B1"


def test_raise_exception_gives_the_templates_own_words():
    text = refused("{% if true %}{{ raise_exception('roles must\nalternate') }}{% endif %}")
    assert text == "chat template: roles must alternate"


def test_generation_spans_are_the_assistants_words():
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = [*USER, {"role": "assistant", "content": "é😀"}, *USER, {"role": "assistant", "content": "two"}]
    rendered = ChatTemplate(source).render(messages)
    assert [rendered.text[start:end] for start, end in rendered.generation_spans] == ["é😀", "two"]
    assert ChatTemplate(source).marks_generation
    assert not ChatTemplate("{{ generation }}").marks_generation


def test_one_template_in_several_threads():
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    compiled, failures = ChatTemplate(source), []

    def work(size: int) -> None:
        for _ in range(100):
            rendered = compiled.render([{"role": "assistant", "content": "x" * size}] * 3)
            if rendered.generation_spans != ((0, size), (size, 2 * size), (2 * size, 3 * size)):
                failures.append(rendered)

    threads = [threading.Thread(target=work, args=(size,)) for size in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_template_sees_plain_data_only():
    class Colour(str, Enum):  # noqa: UP042  # `str` of a `StrEnum` is another
        RED = "red"

    @dataclasses.dataclass
    class Message:
        role: str
        content: object

    class Model:
        def model_dump(self):
            return {"role": "user", "content": "from pydantic"}

    image = np.zeros((2, 2, 3), np.uint8)
    messages = [
        Message(Colour.RED, [{"type": "image", "image": image}, {"n": np.int64(3), "b": np.bool_(False)}]),
        Model(),
    ]
    text = render("{% for m in messages %}{{ m.role }}:{{ m.content | string }};{% endfor %}", messages)
    assert text == "red:[{'type': 'image', 'image': '<ndarray>'}, {'n': 3, 'b': False}];user:from pydantic;"
    assert "mapping" in refused("{{ messages }}", ["Hi"])
    assert "tools: expected JSON schemas" in refused("", USER, tools=[print])


def test_the_callers_messages_are_left_alone():
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a"}], "thinking": "t"}]
    before = json.dumps(messages)
    render("{{ messages[0].content[0].text }}", messages, continue_final_message=True)
    assert json.dumps(messages) == before


class TestContinue:
    SOURCE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"

    def test_the_last_message_stays_open(self):
        messages = [*USER, {"role": "assistant", "content": "It is "}]
        assert render(self.SOURCE, messages, continue_final_message=True) == "<user>Hi</><assistant>It is"
        kept = self.SOURCE.replace(" | trim", "")
        assert render(kept, messages, continue_final_message=True) == "<user>Hi</><assistant>It is "

    def test_another_field(self):
        source = "{% for m in messages %}<think>{{ m.thinking }}</think>{{ m.content }}{% endfor %}"
        messages = [{"role": "assistant", "content": "", "thinking": "so far"}]
        assert render(source, messages, continue_final_message="thinking") == "<think>so far"

    def test_what_cannot_be_continued(self):
        assert "exclude each other" in refused("", USER, continue_final_message=True, add_generation_prompt=True)
        assert "no 'content' to continue" in refused("", [{"role": "user"}], continue_final_message=True)
        assert "no text to continue" in refused(
            "content", [{"role": "user", "content": []}], continue_final_message=True
        )
        assert "does not show 'content'" in refused("{{ bos_token }}", USER, continue_final_message=True)
        assert "leaves out the end" in refused("{{ messages[0].content[:1] }}", USER, continue_final_message=True)


class TestSources:
    def test_the_order_of_places(self, tmp_path):
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "from config"}]
        assert ChatTemplate.from_folder(tmp_path, named).render(USER).text == "from config"
        assert ChatTemplate.from_folder(tmp_path, "as text").render(USER).text == "as text"
        (tmp_path / "chat_template.jinja").write_text("from jinja", encoding="utf-8")
        assert ChatTemplate.from_folder(tmp_path, "as text").render(USER).text == "from jinja"
        for name in ("chat_template.json", "processor_config.json"):
            (tmp_path / name).write_text(json.dumps({"chat_template": f"from {name}"}))
            assert ChatTemplate.from_folder(tmp_path, "as text").render(USER).text == f"from {name}"
        template = ChatTemplate.from_folder(tmp_path, "as text", places=TOKENIZER_PLACES)
        assert template.render(USER).text == "from jinja"

    def test_missing_or_damaged(self, tmp_path):
        with pytest.raises(TemplateError, match=r"chat_template\.jinja: no such file, and tokenizer_config\.json"):
            ChatTemplate.from_folder(tmp_path)
        with pytest.raises(TemplateError, match=r"no template named 'default' \(there are: rag\)"):
            ChatTemplate.from_folder(tmp_path, [{"name": "rag", "template": "x"}])
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
        with pytest.raises(TemplateError, match=r"chat_template\.jinja: begins with a byte order mark"):
            ChatTemplate.from_folder(tmp_path)
        (tmp_path / "chat_template.jinja").write_text("a\n{% for x in %}")
        with pytest.raises(TemplateError, match=r"chat_template\.jinja: line 2: "):
            ChatTemplate.from_folder(tmp_path)

    def test_variables_it_expects_from_outside(self):
        source = (
            "{% set a = 1 %}{{ a }}{{ keep_past_thinking }}{% for m in messages %}{{ m }}{{ loop.index }}{% endfor %}"
        )
        assert ChatTemplate(source).variables == {"keep_past_thinking", "messages"}

    def test_variables_win_over_special_tokens(self):
        assert render("{{ bos_token }}{{ other }}", bos_token="<s>", other=1) == "<s>1"

    def test_values_of_formats_have_any_name(self):
        assert render("{{ '{name} {form}'.format(name=1, form=2) }}") == "1 2"
        assert render("{{ '%(name)s %(form)s' | format(name=1, form=2) }}") == "1 2"


class TestBounds:
    @pytest.mark.parametrize(
        "source",
        [
            "{% set r = range(90000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            DOUBLING,
            "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
            "{{ 'x' * 10**9 }}",
            "{{ 10 ** (10 ** 8) }}",
            "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{{ range(10**9) | list }}",
            "{{ " + "(" * 500 + ")" * 500 + " }}",
            "{% set s = 'a' * 15999990 %}{% set l = [s] * 1000000 %}{{ (s ~ 'b') in l }}",
            "{% set s = 'a' * 15999990 %}{% set l = [s] * 1000000 %}{{ l.count(s ~ 'b') }}",
            "{% for i in range(20000) %}{% set x = [0] * 1000000 %}{% endfor %}",
        ],
    )
    def test_endless_templates_end(self, source):
        refused(source)

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize(
        "source",
        [
            "{% set a = range(100000)|list %}{{ a|select('in', a)|list|length }}",
            "{% set a = range(100000)|list %}{{ a" + "|map(attribute='real')" * 60 + "|list|length }}",
            "{% set a = 'x' * 15000000 ~ 'a' %}{% set b = 'x' * 15000000 ~ 'b' %}"
            + "{% if a == b %}{% endif %}" * 2000,
            "{% set l = range(100000)|list * 5 %}" + "{% for a in l if false %}{% endfor %}" * 1000,
            "{% set t = (1,) %}" + "{% set t = (t, t) %}" * 18 + "{% if {}[t] %}{% endif %}" * 1000,
        ],
        ids=["a test of each value", "filters of filters", "comparisons", "rounds left out", "large keys"],
    )
    def test_work_without_loops_ends_in_time(self, source, monkeypatch):
        monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
        template = ChatTemplate(source)
        started = time.process_time()
        with pytest.raises(TemplateError, match="it may never end"):
            template.render(USER)
        assert time.process_time() - started < 3

    def test_what_would_take_all_memory_ends_before_it_does(self):
        """In a process with little memory and time, one after the other."""
        program = """
import json, resource, sys
from mlx_lfm2vl.errors import TemplateError
from mlx_lfm2vl.processing.template import ChatTemplate
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
for source in json.load(sys.stdin):
    try:
        text = ChatTemplate(source).render([{"role": "user", "content": "Hi"}]).text
        print("made", len(text), source[:200])
    except TemplateError as error:
        assert "MemoryError" not in str(error), source
"""
        doubled = {  # each is written forty times behind {% set a = ... %}
            "'xxxxxxxx'": "a ~ a",
            "['x']": "[a, a]",
            "('x',)": "(a, a)",
            "{'x': 1}": "{'x': a, 'y': a}",
            "[1]": "(a + a) | batch(1000000) | list",
            "'x'": "dict(x=a, y=a)",
            "'xxx'": "a.replace('x', a)",
            "'ab'": "a.join([a, a, a])",
            "'abc'": "'%s%s' % (a, a)",
            "'abcd'": "'{0}{0}'.format(a)",
            "99999": "a * a",
            "'aaa'": "a | replace('a', a)",
            "'aaaa'": "[a, a] | join(a)",
            "'aaaaa'": "'%s%s' | format(a, a)",
            "'z'": "a.ljust(a | length * 2)",
            "[2]": "a * 2",
            "'b'.encode()": "a + a",
            "'bb'.encode()": "a.join([a, a])",
        }
        single = [
            "{{ 'x' | center(10**9) }}",
            "{{ ('x\\n' * 1000000) | indent(1000000) }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ '%*d' % (1000000000, 1) }}",
            "{{ '{:1000000000}'.format(1) }}",
            "{{ '{:{}}'.format(1, 1000000000) }}",
            "{{ '%1000000000d' | format(1) }}",
            "{{ 'x'.zfill(1000000000) }}",
            "{{ [1] | batch(1000000000, 'x') | list }}",
            "{{ [1] | slice(1000000000) | list }}",
            "{{ 1 | round(1000000000) }}",
            "{{ (1).to_bytes(1000000000, 'big') }}",
            "{{ 'aaaa'.translate({97: 'x' * 10000000}) }}",
            "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
            "{{ range(99999) | list | tojson(indent=1000000) }}",
            "{% set n = namespace(l=[]) %}{% for i in range(1000) %}"
            "{% set n.l = n.l + [('\U0001d11e' * 15999000) ~ i] %}{% endfor %}",
            "{{ ('\u0101' * 15999990) | list | length }}",
            "{{ ('a ' * 7999990).split() | length }}",
            "{{ strftime_now('%Y' * 1000000) }}",
            "{% set x %}{% for i in range(99999) %}" + "data " * 5000 + "{% endfor %}{% endset %}",
            "{% set x %}{% for i in range(99999) %}{{ 'data ' * 5000 }}{% endfor %}{% endset %}",
            "{% macro m() %}"
            + "data " * 5000
            + "{% endmacro %}{% for i in range(99999) %}{% set x = m() %}{% endfor %}",
            "{% for i in ('x' * 16000000) | map('upper') | map('lower') | map('upper') %}{% endfor %}",
            "x" * 2**18 + "y",
            LONG + "".join(f"{{% set b{i} = a[{i}:] %}}" for i in range(1000)),
            LONG + "{{ [1] | batch(1000000, a) | map('string') | list }}",
            LONG + "{% macro m() %}{{ varargs | string }}{% endmacro %}{{ m(" + "a, " * 5000 + ") }}",
            LONG + "{% set n = namespace(x=a) %}{{ ('{0.x}' * 100000).format(n) }}",
            LONG + "{% set d = {'k': a[:1000000]} %}{{ [d.items().mapping] * 1000000 }}",
            "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
            "{{ ('x\\r' * 1000000) | indent(1000000) }}",
            "{{ ('\u0101 ' * 7999990) | title }}",
            "{% set n = namespace(t=()) %}{% for i in range(99999) %}{% set n.t = (n.t,) %}{% endfor %}{{ {n.t: 1} }}",
        ]
        doubling = [f"{{% set a = {a} %}}" + f"{{% set a = {b} %}}" * 40 + "{{ a }}" for a, b in doubled.items()]
        run = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(single + doubling),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr[-2000:]

    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ self.__init__.__globals__ }}",
            "{{ raise_exception.__globals__ }}",
            "{{ lipsum.__globals__['os'] }}",
            "{{ namespace.__init__.__globals__ }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ strftime_now.__closure__.x }}",
            "{% set ns = namespace(__class__=1) %}",
            "{% set ns = namespace() %}{% set ns._x = 1 %}",
            "{{ '%s'.__format__.__self__ }}",
            "{{ '{0.__class__.__mro__}'.format('') }}",
            "{{ dict.__subclasses__() }}",
            "{{ (messages | map('string')).send(none) }}",
            "{{ 'a'.encode() }}",
            "{{ (1).to_bytes(3, 'big') }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{% extends 'x' %}",
        ],
    )
    def test_nothing_leads_out_of_the_sandbox(self, source):
        try:
            text = render(source)
        except TemplateError as error:
            assert "\n" not in str(error)
        else:
            assert re.fullmatch(r"", text), text  # undefined, which prints as nothing

    def test_a_namespace_prints_nothing_that_it_holds(self):
        source = "{% set a = namespace() %}" + "{% set a = namespace(x=a, y=a) %}" * 40 + "{% set a.z = a %}{{ [a] }}"
        assert render(source) == "[<Namespace>]"

    def test_conversations_nested_without_end(self):
        deep: list = []
        for _ in range(5000):
            deep = [deep]
        assert "nested too deeply" in refused("{{ messages }}", [{"role": "user", "content": deep}])

    def test_long_conversations_are_within_bounds(self):
        source = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
        messages = [{"role": "user", "content": [{"type": "text", "text": "word " * 50}] * 10}] * 2000
        assert len(render(source, messages)) == 2000 * 10 * 250
        assert sandbox.TOTALS["steps"] > 20 * 2000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=json_values, indent=st.none() | st.integers(0, 4), ascii=st.booleans())
def test_tojson_is_json(value, indent, ascii):
    text = render("{{ v | tojson(ensure_ascii=a, indent=i) }}", v=value, a=ascii, i=indent)
    assert text == json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert json.loads(tojson(value)) == value
    if ascii:
        assert text.isascii()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_text_passes_through_unchanged(text):
    source = "{% for m in messages %}\n[{{- m.content -}}]\n    {% endfor %}\n"
    assert render(source, [{"role": "user", "content": text}]) == f"[{text}]\n"


@settings(max_examples=150, deadline=None)
@given(source=st.text(alphabet="{}%-#|~+*() \n'abcmessages.for in if endsetrange0129", max_size=40))
def test_any_text_as_a_template_renders_or_is_refused(source):
    try:
        render(source)
    except TemplateError as error:
        assert "\n" not in str(error)
