"""Chats against cold runs: whatever was done before, an answer is the one of the whole conversation from nothing."""

import json
from functools import cache

import numpy as np
import pytest
from conftest import GOLDEN, picture
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule
from PIL import Image

from mlx_lfm2vl import GenerationOptions, generate, load, stream_generate
from mlx_lfm2vl.errors import ImageError, OutputError, PromptError
from mlx_lfm2vl.generation.chat import Chat

PICTURES = ("landscape", "small", "portrait")
TEXTS = ("What is this?", "And that?", "Compare them, please.", "Why?", "ünïcode 漢字")
SHORT = GenerationOptions(max_tokens=5)


@cache
def loaded():
    return load(GOLDEN / "gen2")


def cold(messages: list[dict]) -> str:
    """The answer of a run that knows nothing of before."""
    model, processor = loaded()
    return generate(model, processor, messages, options=SHORT)


class AnyConversation(RuleBasedStateMachine):
    """Turns, retries, undos, forks, resets and saves in any order, on any number of chats."""

    chats = Bundle("chats")

    @rule(target=chats, system=st.sampled_from([None, "Be brief."]))
    def begin(self, system):
        return Chat(*loaded(), system=system, options=SHORT)

    @rule(chat=chats, text=st.sampled_from(TEXTS), pictures=st.lists(st.sampled_from(PICTURES), max_size=2))
    def turn(self, chat, text, pictures):
        if len(chat.messages) > 8:
            chat.reset()
        answer = chat.ask(text, [picture(name) for name in pictures])
        assert answer == chat.messages[-1]["content"] == cold(chat.messages[:-1])

    @rule(chat=chats)
    def retry(self, chat):
        if chat.messages and chat.messages[-1]["role"] == "assistant":
            before = chat.messages
            assert "".join(piece.text for piece in chat.retry()) == before[-1]["content"]
            assert chat.messages == before

    @rule(chat=chats)
    def undo(self, chat):
        if chat.messages and chat.messages[-1]["role"] == "assistant":
            before = list(chat.messages)
            chat.undo()
            assert chat.messages == before[:-2]

    @rule(chat=chats, after=st.integers(0, 6))
    def cancel(self, chat, after):
        asked = iter(range(100))
        before = chat.messages
        pieces = list(chat.stream("Tell me.", picture("small"), stop=lambda: next(asked) >= after))
        said = "".join(piece.text for piece in pieces)
        if pieces[-1].finish_reason == "cancelled" and not said:
            assert chat.messages == before
        else:
            assert chat.messages[-1]["content"] == said
            chat.undo()

    @rule(target=chats, chat=chats)
    def fork(self, chat):
        return multiple(chat.fork())

    @rule(chat=chats)
    def through_a_file(self, chat):
        path = GOLDEN.parent / ".hypothesis-chat.json"
        chat.save(path)
        messages = chat.messages
        chat.load(path)
        path.unlink()
        assert [m["role"] for m in chat.messages] == [m["role"] for m in messages]


AnyConversation.TestCase.settings = settings(
    max_examples=12, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyConversation = AnyConversation.TestCase


def statistics(pieces):
    return pieces[-1].statistics


def test_a_turn_costs_its_own_tokens_and_a_picture_is_encoded_once(monkeypatch):
    model, processor = loaded()
    chat = Chat(model, processor, options=SHORT)
    first = statistics(list(chat.stream("What is this?", picture("landscape"))))
    assert first.cached_tokens == 0 and first.image_tokens == 60
    views = []
    encode = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda *a, **k: (views.append(1), encode(*a, **k))[1])
    second = statistics(list(chat.stream("And now?")))
    assert second.cached_tokens >= first.prompt_tokens
    assert second.prompt_tokens - second.cached_tokens < 30
    again = statistics(list(chat.retry()))
    assert again.cached_tokens == again.prompt_tokens == second.prompt_tokens
    chat.reset()
    anew = statistics(list(chat.stream("What is this?", picture("landscape"))))
    assert anew.cached_tokens == 0
    assert views == []  # its features were kept
    chat.ask("What is this?", picture("portrait"))
    assert views == [1]


def test_a_second_turn_about_a_tiled_picture_starts_five_times_sooner_than_a_cold_run():
    model, processor = load("demo")
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1400, 3), dtype=np.uint8))
    one = GenerationOptions(max_tokens=1)
    warm, cold = [], []
    for _ in range(3):
        chat = Chat(model, processor, options=one)
        chat.ask("What is in this image?", large)
        *_, turn = chat.stream("Where is the ring?")
        *_, whole = stream_generate(model, processor, chat.messages[:-1], options=one)
        assert turn.tokens == whole.tokens and turn.statistics.prompt_tokens == whole.statistics.prompt_tokens
        warm.append(turn.statistics.time_to_first_token)
        cold.append(whole.statistics.time_to_first_token)
    assert whole.statistics.image_tokens > 64  # which one view may not have
    assert min(cold) > 5 * min(warm), (cold, warm)


def test_the_same_ids_with_another_picture_are_another_prompt():
    model, processor = loaded()
    one = picture("landscape")
    other = Image.fromarray(255 - np.asarray(one))
    chat = Chat(model, processor, options=SHORT)
    chat.ask("What is this?", one)
    chat.undo()
    chat.ask("What is this?", other)
    assert chat.messages[-1]["content"] == cold(chat.messages[:-1])


def test_saved_conversations_go_on(tmp_path):
    model, processor = loaded()
    chat = Chat(model, processor, system="Be brief.", options=SHORT)
    chat.ask("What is this?", [picture("landscape"), picture("small")])
    chat.save(tmp_path / "talk.json")
    expected = chat.ask("And?")
    again = Chat(model, processor, options=SHORT)
    again.load(tmp_path / "talk.json")
    assert again.ask("And?") == expected
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


def test_a_turn_that_fails_leaves_no_trace(tmp_path):
    model, processor = loaded()
    chat = Chat(model, processor, options=SHORT)
    chat.ask("Hello.")
    before = list(chat.messages)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        chat.ask("What is this?", tmp_path / "nowhere.png")
    with pytest.raises(PromptError, match="the text is int"):
        chat.ask(3)
    with pytest.raises(PromptError, match=r"the prompt has \d+ tokens, but the model has"):
        chat.ask("Hello. " * 50_000)
    assert chat.messages == before
    assert chat.ask("Why?") == cold(chat.messages[:-1])


def test_a_closed_stream_keeps_what_was_said():
    model, processor = loaded()
    chat = Chat(model, processor, options=GenerationOptions(max_tokens=30))
    stream = chat.stream("Hello.")
    said = next(stream).text + next(stream).text
    stream.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert chat.ask("Go on.", options=SHORT) == cold(chat.messages[:-1])


def test_a_conversation_that_cannot_be_written_leaves_no_file(tmp_path):
    chat = Chat(*loaded(), system="half a character: \ud83d")
    with pytest.raises(OutputError, match=r"talk\.json: cannot be written"):
        chat.save(tmp_path / "talk.json")
    with pytest.raises(OutputError, match=r"x\.json: cannot be written \(No such file"):
        chat.save(tmp_path / "no folder" / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_cannot_be_undone_or_loaded(tmp_path):
    chat = Chat(*loaded())
    with pytest.raises(PromptError, match="no turn to take back"):
        chat.undo()
    with pytest.raises(PromptError, match="no answer to try again"):
        next(chat.retry())
    for content, match in (
        ("{}", "is not a saved conversation"),
        ("[1", "is not a saved conversation"),
        ("[" * 100_000, "is not a saved conversation"),
        (json.dumps({"format": 1, "messages": [{"role": "user", "content": 3}]}), "is not a saved conversation"),
        (json.dumps({"format": 1, "messages": [{"role": "user", "content": {"type": 1}}]}), "is not a saved"),
        (
            json.dumps({"format": 1, "messages": [{"role": "user", "content": [{"type": "image", "png": "??"}]}]}),
            "is not",
        ),
        (
            json.dumps({"format": 1, "messages": [{"role": "user", "content": [{"type": "image", "png": "aaaa"}]}]}),
            "is not",
        ),
        (json.dumps({"format": 99, "messages": []}), "is of format 99"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(PromptError, match=match):
            chat.load(tmp_path / "x.json")
    with pytest.raises(PromptError, match="cannot be read"):
        chat.load(tmp_path / "absent.json")
