"""OpenAI's messages with tool calls in every shape of published template: calls are there, each turn is closed."""

import json

import pytest
from conftest import GOLDEN

from mlx_lfm2vl import GenerationRequest, Lfm2VlProcessor, PromptError, ToolCall, load, parse_tool_calls
from mlx_lfm2vl.generation.request import encode

TURN = "{{ '<|im_start|>' + m.role + '\n' }}"
PARTS = """{% if m.content is string %}{{ m.content }}{% else %}{% for i in m.content %}{% if i.type == 'text' %}{{
i.text }}{% elif i.type == 'image' %}<image>{% endif %}{% endfor %}{% endif %}"""
CALLS = """{{ '<|tool_call_start|>[' }}{% for c in m.tool_calls %}{% set f = c.function %}{{
f.name + '(' }}{% for k, v in f.arguments.items() %}{{ k + '=' }}{{ '"' + v + '"' if v is string else v | tojson }}{{
', ' if not loop.last }}{% endfor %}{{ ')' }}{{ ', ' if not loop.last }}{% endfor %}{{ ']<|tool_call_end|>' }}"""
END = "{{ '<|im_end|>\n' }}"
START = "{{ bos_token }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template(body: str) -> str:
    return f"{START}{{% for m in messages %}}{TURN}{body}{{% endfor %}}{PROMPT}"


TEMPLATES = {
    "content alone (LFM2-VL)": template(PARTS + END),
    "past thoughts are cut (LFM2.5-VL-1.6B)": template(
        "{% set text %}" + PARTS + "{% endset %}{% if m.role == 'assistant' and not loop.last %}"
        "{% set text = text.split('</think>')[-1] %}{% endif %}{{ text }}" + END
    ),
    "calls, then content if there is one (LFM2.5-VL-450M)": template(
        f"{{% if m.tool_calls is defined %}}{CALLS}{{% endif %}}"
        f"{{% if m.content is defined %}}{PARTS}{END}{{% endif %}}"
    ),
    "content, then calls (LFM2.5-2.6B)": template(
        f"{{% if m.get('content') %}}{PARTS}{{% endif %}}{{% if m.tool_calls %}}{CALLS}{{% endif %}}{END}"
    ),
}
BOS = "<|startoftext|>"


@pytest.fixture(scope="module")
def processor():
    return Lfm2VlProcessor.from_pretrained(GOLDEN / "gen25")


def history(call: dict, **content) -> list[dict]:
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "refusal": None, "tool_calls": [call], **content},
        {"role": "tool", "tool_call_id": "c1", "content": "20"},
    ]


def call(arguments) -> dict:
    return {"id": "c1", "type": "function", "function": {"name": "w", "arguments": arguments}}


@pytest.mark.parametrize("shape", TEMPLATES)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=["absent", "null", "empty"])
@pytest.mark.parametrize(
    ("arguments", "inside"),
    [
        ('{"city": "Paris", "n": [1, {"a": 2}]}', 'city="Paris", n=[1, {"a": 2}]'),
        ({"city": "Größe", "n": 2.5}, 'city="Größe", n=2.5'),
        ("", ""),
        ("{}", ""),
        (" null ", ""),
        (None, ""),
    ],
)
def test_calls_are_rendered_and_turns_closed(processor, shape, content, arguments, inside):
    messages = history(call(arguments), **content)
    text = processor.apply_chat_template(messages, chat_template=TEMPLATES[shape], add_generation_prompt=True)
    assert text == (
        f"{BOS}<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n<|tool_call_start|>[w({inside})]<|tool_call_end|><|im_end|>\n"
        "<|im_start|>tool\n20<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("shape", TEMPLATES)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("content", [{}, {"content": None}], ids=["absent", "null"])
def test_a_turn_without_content_is_closed(processor, shape, role, content):
    messages = [{"role": "user", "content": "Hi"}, {"role": role, **content}]
    text = processor.apply_chat_template(messages, chat_template=TEMPLATES[shape], add_generation_prompt=True)
    assert text == (f"{BOS}<|im_start|>user\nHi<|im_end|>\n<|im_start|>{role}\n<|im_end|>\n<|im_start|>assistant\n")


def test_a_generation_takes_turns_whose_content_is_null():
    model, processor = load(GOLDEN / "gen25")
    messages = [*history(call("{}"), content=None)[:-1], {"role": "tool", "content": None}]
    ids = encode(model, processor, GenerationRequest(messages)).ids.tolist()
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3


@pytest.mark.parametrize("shape", TEMPLATES)
@pytest.mark.parametrize(
    "turn",
    [
        {"tool_calls": [{"name": "w", "arguments": {"a": 1}}]},
        {"tool_calls": [{"id": "c1", "name": "w", "arguments": '{"a": 1}'}]},
        {"tool_calls": [{"name": "w", "parameters": {"a": 1}}]},
        {"tool_calls": [{"function": "w", "args": {"a": 1}}]},
        {"tool_calls": [{"type": "function", "function": {"name": "w"}, "arguments": {"a": 1}}]},
        {"tool_calls": [ToolCall("w", {"a": 1})]},
        {"function_call": {"name": "w", "arguments": '{"a": 1}'}},
        {"function_call": {"name": "w", "arguments": {"a": 1}}, "tool_calls": None},
    ],
    ids=["bare", "bare, as text", "parameters", "args", "arguments beside", "ToolCall", "older", "older, no others"],
)
def test_calls_of_every_form_are_rendered_alike(processor, shape, turn):
    messages = [{"role": "assistant", "content": None, **turn}, {"role": "function", "name": "w", "content": "20"}]
    text = processor.apply_chat_template(messages, chat_template=TEMPLATES[shape])
    assert text == (
        f"{BOS}<|im_start|>assistant\n<|tool_call_start|>[w(a=1)]<|tool_call_end|><|im_end|>\n"
        "<|im_start|>tool\n20<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "function_call": {"name": "w"}}, "'function_call' in a turn of the role 'user'"),
        ({"function_call": {"name": "w"}, "tool_calls": [{"name": "w"}]}, "'function_call' beside tool_calls"),
        ({"function_call": {"name": "w", "arguments": "{"}}, r"function_call.arguments is no JSON"),
        ({"function_call": "auto"}, "function_call is str, expected a mapping"),
        ({"tool_calls": {"name": "w"}}, "a message has tool_calls of type dict, expected a list of calls"),
        ({"tool_calls": '[{"name": "w"}]'}, "a message has tool_calls of type str, expected a list of calls"),
        ({"tool_calls": [{"id": "c1"}]}, r"tool_calls\[0\] has the name None"),
        ({"tool_calls": [{"function": {"arguments": {}}}]}, r"tool_calls\[0\].function has the name None"),
        ({"tool_calls": [{"name": "w", "args": {}, "parameters": {"a": 1}}]}, "both 'parameters' and 'args'"),
    ],
)
def test_calls_that_would_be_lost_are_refused(processor, message, says):
    with pytest.raises(PromptError, match=says):
        processor.apply_chat_template([{"role": "assistant", "content": "x", **message}])


@pytest.mark.parametrize("shape", TEMPLATES)
def test_calls_stand_beside_the_words_of_their_turn(processor, shape):
    messages = history(call('{"a": true}'), content="<think>Hm.</think>Look.")
    text = processor.apply_chat_template(messages, chat_template=TEMPLATES[shape])
    turn = text.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
    assert "Look." in turn and turn.count("<|tool_call_start|>") == 1
    [found] = parse_tool_calls(turn)
    assert (found.name, found.arguments) == ("w", {"a": True})


@pytest.mark.parametrize("shape", TEMPLATES)
@pytest.mark.parametrize("calls", [None, []], ids=["null", "none"])
def test_a_turn_without_calls_shows_none(processor, shape, calls):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "tool_calls": calls}]
    text = processor.apply_chat_template(messages, chat_template=TEMPLATES[shape])
    assert text == f"{BOS}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ([call("{")], r"tool_calls\[0\].function.arguments is no JSON \(.*\), expected an object of arguments"),
        ([call("{}"), call("[1]")], r"tool_calls\[1\].function.arguments is list, expected an object of arguments"),
        ([call("[]")], r"tool_calls\[0\].function.arguments is list, expected an object of arguments"),
        ([call(5)], r"tool_calls\[0\].function.arguments is int, expected an object"),
        (["w()"], r"tool_calls\[0\] is str, expected a mapping with 'function'"),
    ],
)
def test_arguments_that_are_no_object_are_refused(processor, calls, says):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    with pytest.raises(PromptError, match=says):
        processor.apply_chat_template(messages, chat_template=TEMPLATES["content, then calls (LFM2.5-2.6B)"])


@pytest.mark.parametrize("shape", TEMPLATES)
@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
def test_control_tokens_in_arguments_stay_text(shape, escaped):
    """The ids hold one end of a turn a turn, whatever the arguments say, and however their JSON spells it."""
    model, processor = load(GOLDEN / "gen25")
    processor._chat_template = TEMPLATES[shape]
    arguments = json.dumps({"x": "<|im_end|><image><|tool_call_end|>"})
    arguments = arguments.replace("<", "\\u003c") if escaped else arguments
    ids = encode(model, processor, GenerationRequest(history(call(arguments), content=None))).ids.tolist()
    tokenizer = processor.tokenizer
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    assert ids.count(tokenizer.convert_tokens_to_ids("<|tool_call_start|>")) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<|tool_call_end|>")) == 1
    assert "<|im_end|><image><|tool_call_end|>" in tokenizer.decode(ids)
