"""A model's tool calls as clients get them: read as far as they can be, whatever pieces they come in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import steps

from mlx_lfm2vl import GenerationOptions, GenerationResponse
from mlx_lfm2vl.processing.conversation import CALL_END, CALL_START
from mlx_lfm2vl.server.api_request import ApiRequest
from mlx_lfm2vl.server.tool_calls import CallDelta, CallReader, joined_calls

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.dictionaries(st.text(), LEAVES | st.lists(LEAVES) | st.dictionaries(st.text(), LEAVES)), st.data())
def test_of_arguments_that_are_cut_off_whole_members_are_known(arguments, data):
    text = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()))
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    found = CallDelta(0, "", "f", cut, cut=True).members
    assert list(found.items()) == list(arguments.items())[: len(found)]
    assert len(found) >= len(arguments) - 1 or cut != text[:-1]


def read_all(responses, several=True):
    """The text and the calls, as (name, arguments, cut), of an answer; and whether a call is broken."""
    reader = CallReader(ApiRequest("demo", [], [{"name": "a"}], GenerationOptions(), {}, several_calls=several))
    parts = [part for response in responses for part in reader.read(response)]
    calls = joined_calls([part for part in parts if not isinstance(part, str)])
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [(call.name, call.arguments, call.cut) for call in calls], reader.broken


def in_letters(text, reason, said=""):
    """A block of calls as responses of a letter, behind a text."""
    whole = text.endswith(CALL_END) or reason is not None
    yield GenerationResponse(said, ())
    for letter in text[:-1]:
        yield GenerationResponse("", (), tool_delta=letter)
    yield GenerationResponse("", (), reason, tool_text=text if whole else "", tool_delta=text[-1])


@pytest.mark.parametrize("pieces", ["one", "letters"])
@pytest.mark.parametrize(
    ("block", "reason", "text", "calls", "broken"),
    [
        ('[a(x=1), b(y="z")]END', "stop", "", [("a", '{"x": 1}', False), ("b", '{"y": "z"}', False)], False),
        ("[a(x=1)]", "stop", "", [("a", '{"x": 1}', False)], False),
        ("[a(x=1), b(y='z", "length", "", [("a", '{"x": 1}', False), ("b", '{"y": "z', True)], False),
        ("[a(x=1), b(y='z", "stop", "", [("a", '{"x": 1}', False), ("b", '{"y": "z', True)], True),
        ("[a(x=1), b(y=12", "deadline", "", [("a", '{"x": 1}', False), ("b", '{"y": 12', True)], False),
        ('[{"name": "a", "arguments": {"x": 1}}', "length", "", [("a", '{"x": 1}', False)], False),
        ("[a(x=1), b", "length", "", [("a", '{"x": 1}', False)], False),
        ("[a(x=1), b(y=z), c()]END", "stop", "z), c()]END", [("a", '{"x": 1}', False), ("b", '{"y": ', True)], True),
        ("[b", "length", "", [], False),
        ("", "length", "", [], False),
        ("[]END", "stop", "START[]END", [], False),
        ("oops]END", "stop", "STARToops]END", [], False),
    ],
)
def test_calls_are_read_as_far_as_they_can_be(block, reason, text, calls, broken, pieces):
    block, text = (
        each.replace("START", CALL_START).replace("END", CALL_END) for each in (f"START{block}", f"Yes.{text}")
    )
    one = [GenerationResponse("Yes.", (), reason, tool_text=block, tool_delta=block)]
    assert read_all(in_letters(block, reason, "Yes.") if pieces == "letters" else one) == (text, calls, broken)


def test_text_and_calls_of_one_response_stand_in_their_order():
    first, second = (f"{CALL_START}[{name}()]{CALL_END}" for name in "ab")
    responses = [
        GenerationResponse("1", (), tool_delta=first[:-5]),
        GenerationResponse("2", (), tool_text=first + second, tool_delta=first[-5:] + second + CALL_START),
        GenerationResponse("", (), "stop", tool_text=f"{CALL_START}[]{CALL_END}", tool_delta=f"[]{CALL_END}"),
    ]
    reader = CallReader(ApiRequest("demo", [], [{"name": "a"}], GenerationOptions(), {}))
    parts = [part if isinstance(part, str) else part.name for each in responses for part in reader.read(each)]
    assert parts == ["1", "a", "b", "2", f"{CALL_START}[]{CALL_END}"]
    assert read_all(responses, several=False) == ("12", [("a", "{}", False)], False)


SPELLED = f'[a()]{CALL_END}[b(x=1), a(text="{CALL_END}")]'


@pytest.mark.parametrize("behind", [0, 1, 5])
def test_an_end_that_a_block_spells_out_cuts_nothing(behind):
    block = f"{CALL_START}{SPELLED}{CALL_END}"
    rest = f"{CALL_START}[b()]"[: len(CALL_START) + behind]
    last = GenerationResponse("", (), "length", tool_text=rest)
    whole = read_all([GenerationResponse("", (), tool_text=block, tool_delta=block + rest), last])
    assert [name for name, _, _ in whole[1]] == ["a", "b", "a", *["b"] * (behind > 2)]
    for at in range(1, len(block)):
        first = GenerationResponse("", (), tool_delta=block[:at])
        second = GenerationResponse("", (), tool_text=block, tool_delta=block[at:] + rest)
        assert read_all([first, second, last]) == whole


def test_many_calls_are_joined_in_linear_time():
    def join(count: int) -> object:
        deltas = [CallDelta(index, "", "a", first=part == 0) for index in range(count) for part in range(2)]
        return joined_calls(deltas)

    assert steps(lambda: join(200)) < 2.2 * steps(lambda: join(100))
