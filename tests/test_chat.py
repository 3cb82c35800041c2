"""Chats against cold runs: whatever was done before, an answer is the one of the whole conversation from nothing."""

import json
import os
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture, statistics_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule
from PIL import Image

from mlx_lfm2vl import (
    GenerationOptions,
    GenerationRequest,
    Lfm2VlProcessor,
    PromptCache,
    SourcePolicy,
    generate,
    generate_batch,
    load,
    stream_generate,
)
from mlx_lfm2vl.errors import ImageError, OptionError, OutOfMemoryError, OutputError, PromptError
from mlx_lfm2vl.generation import chunked_prefill, turn_pictures
from mlx_lfm2vl.generation.chat import Chat
from mlx_lfm2vl.processing.load_image import load_image

PICTURES = ("landscape", "small", "portrait")
TEXTS = ("What is this?", "And that?", "Compare them, please.", "Why?", "ünïcode 漢字")
SHORT = GenerationOptions(max_tokens=5)
PREFIXES = PromptCache()


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


def said(pieces) -> tuple[str, tuple[int, ...]]:
    """Text and tokens of an answer."""
    pieces = list(pieces)
    return "".join(piece.text for piece in pieces), tuple(token for piece in pieces for token in piece.tokens)


def cold(messages: list[dict]) -> tuple[str, tuple[int, ...]]:
    """The answer of a run that knows nothing of before."""
    model, processor = loaded()
    return said(stream_generate(model, processor, messages, options=SHORT))


class AnyConversation(RuleBasedStateMachine):
    """Turns, retries, undos, forks, resets and saves in any order, on any number of chats."""

    chats = Bundle("chats")

    @rule(target=chats, system=st.sampled_from([None, "Be brief."]))
    def begin(self, system):
        return Chat(*loaded(), system=system, options=SHORT)

    @rule(target=chats, system=st.sampled_from([None, "Look well. " * 12]))
    def begin_with_what_others_know(self, system):
        return Chat(*loaded(), system=system, options=SHORT, prompt_cache=PREFIXES)

    @rule(chat=chats, text=st.sampled_from(TEXTS), pictures=st.lists(st.sampled_from(PICTURES), max_size=2))
    def turn(self, chat, text, pictures):
        if len(chat.messages) > 8:
            chat.reset()
        answer = said(chat.stream(text, [picture(name) for name in pictures]))
        assert answer == cold(chat.messages[:-1]) and answer[0] == chat.messages[-1]["content"]

    @rule(chat=chats, text=st.sampled_from(TEXTS))
    def turn_left_open(self, chat, text):
        self.open = chat.stream(text)  # the one before may be dropped by it
        next(self.open)

    @rule(chat=chats)
    def retry(self, chat):
        chat.fork()  # the stream that may be open becomes part of the conversation
        if chat.messages and chat.messages[-1]["role"] == "assistant":
            before = chat.messages
            answer = said(chat.retry())
            assert answer == cold(before[:-1]) and answer[0] == chat.messages[-1]["content"]
            assert chat.messages[:-1] == before[:-1]

    @rule(chat=chats)
    def go_on(self, chat):
        chat.fork()
        if chat.messages and chat.messages[-1]["role"] == "assistant":
            before = chat.messages
            fresh = Chat(*loaded(), options=SHORT)
            fresh.messages = list(before)
            answer = said(chat.continue_final_message())
            assert answer == said(fresh.continue_final_message())
            whole = before[-1]["content"].rstrip("\ufffd") + answer[0]
            assert chat.messages == [*before[:-1], {"role": "assistant", "content": whole}]

    @rule(chat=chats)
    def undo(self, chat):
        chat.fork()
        if chat.messages and chat.messages[-1]["role"] == "assistant":
            before = list(chat.messages)
            chat.undo()
            assert chat.messages == before[:-2]

    @rule(chat=chats, after=st.integers(0, 30))
    def cancel(self, chat, after):
        chat.fork()
        asked = iter(range(100))
        before = chat.messages
        pieces = list(chat.stream("Tell me.", picture("small"), stop=lambda: next(asked) >= after))
        text, _ = said(pieces)
        if pieces[-1].finish_reason == "cancelled" and not text:
            assert chat.messages == before
        else:
            assert chat.messages[-1]["content"] == text
            chat.undo()

    @rule(target=chats, chat=chats)
    def fork(self, chat):
        return multiple(chat.fork())

    @rule(target=chats, chat=chats)
    def through_a_file(self, chat):
        """Into a conversation that knows nothing."""
        with tempfile.TemporaryDirectory() as folder:
            chat.save(Path(folder) / "talk.json")
            other = Chat(*loaded(), options=SHORT)
            other.load(Path(folder) / "talk.json")
        assert [m["role"] for m in other.messages] == [m["role"] for m in chat.messages]
        return other


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
    embeddings = type(model.model.vision_tower.embeddings)
    embed = embeddings.__call__

    def embedding(*given):
        views.append(1)
        return embed(*given)

    monkeypatch.setattr(embeddings, "__call__", embedding)
    second = statistics(list(chat.stream("And now?")))
    assert second.cached_tokens >= first.prompt_tokens
    assert second.prompt_tokens - second.cached_tokens < 30
    again = statistics(list(chat.retry()))
    assert again.cached_tokens == again.prompt_tokens == second.prompt_tokens
    chat.reset()
    anew = statistics(list(chat.stream("What is this?", picture("landscape"))))
    assert anew.cached_tokens == anew.prompt_tokens == first.prompt_tokens
    assert views == []
    chat.ask("What is this?", picture("portrait"))
    assert views == [1]


def test_a_second_turn_about_a_tiled_picture_runs_its_own_tokens_only():
    """How much sooner its first token comes is a benchmark's to tell: tools/compare/chat.py."""
    model, processor = load("demo")
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1400, 3), dtype=np.uint8))
    chat = Chat(model, processor, options=GenerationOptions(max_tokens=1))
    chat.ask("What is in this image?", large)
    *_, turn = chat.stream("Where is the ring?")
    *_, whole = stream_generate(model, processor, chat.messages[:-1], options=GenerationOptions(max_tokens=1))
    assert turn.tokens == whole.tokens and statistics_of(turn).prompt_tokens == statistics_of(whole).prompt_tokens
    assert statistics_of(whole).image_tokens > 64  # which one view may not have
    assert (
        statistics_of(turn).prompt_tokens - statistics_of(turn).cached_tokens < 25 < statistics_of(whole).prompt_tokens
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("shift", range(3))
def test_a_turn_cancelled_within_a_picture_leaves_nothing_of_it(shift):
    """The prompt is run in chunks, whose ends may lie within a picture or before its end marker."""
    model, processor = load("demo")
    options = GenerationOptions(max_tokens=4, logprobs=True)

    def pictures(shade):
        return [Image.fromarray(np.full((256, 256, 3), shade + n, np.uint8)) for n in range(8)]

    chat = Chat(model, processor, options=options)
    told: list[tuple[int, int]] = []
    text = "What is this?" + " Say." * shift
    assert list(chat.stream(text, pictures(9), stop=lambda: bool(told), progress=lambda *n: told.append(n)))
    assert 0 < told[0][0] < told[0][1] and chat.messages == []
    turn = [piece.logprobs for piece in chat.stream(text, pictures(99))]
    whole = [piece.logprobs for piece in Chat(model, processor, options=options).stream(text, pictures(99))]
    for one, other in zip(turn, whole, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("images", [(), ("landscape", "portrait")])
def test_a_turn_that_is_stopped_anywhere_leaves_nothing_of_it(images, backend, monkeypatch):
    """The answer is "cancelled" at the very question that says so, whether it is asked in the tower, the prompt or the
    answer; the next turn is to the last digit as if nothing had been. MLX is asked between small pieces of work, NumPy
    also within them."""
    monkeypatch.setattr(chunked_prefill, "PIECE_FLOPS", 1.0)
    model, processor = load(GOLDEN / "gen2")
    options = GenerationOptions(max_tokens=5, logprobs=True)
    asked, stopped = 0, 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > stopped

    def begun() -> Chat:
        chat = Chat(model, processor, options=options)
        chat.ask("Hello.")
        return chat

    def answer(chat: Chat) -> list[tuple]:
        return [(piece.text, piece.tokens, piece.logprobs) for piece in chat.stream("And that?")]

    expected = answer(begun())
    while True:
        chat = begun()
        asked = 0
        pieces = list(chat.stream("What is this? " * 8, [picture(name) for name in images], stop=stop))
        assert pieces[-1].finish_reason == "cancelled" and asked == stopped + 1
        if statistics_of(pieces[-1]).generated_tokens:
            break
        assert len(chat.messages) == 2 and answer(chat) == expected
        stopped += 1
    layers = model.config.vision_config.num_hidden_layers
    prompt = statistics_of(pieces[-1]).prompt_tokens - statistics_of(pieces[-1]).cached_tokens
    pieces_of_work = len(images) * layers + -(-prompt // chunked_prefill.GRANULE)
    assert stopped >= pieces_of_work * (2 if backend == "numpy" else 1)


def test_a_picture_is_looked_through_in_the_turn_that_brings_it_only(monkeypatch):
    chat, looked = Chat(*loaded(), options=SHORT), []
    whole = Image.Image.tobytes

    def looking(*given):
        looked.append(1)
        return whole(*given)

    monkeypatch.setattr(Image.Image, "tobytes", looking)
    chat.ask("What is this?", picture("small"))
    assert looked
    looked.clear()
    chat.ask("And that?")
    list(chat.retry())
    assert not looked


def test_another_turn_closes_the_stream_that_is_open():
    chat = Chat(*loaded(), options=SHORT)
    first = chat.stream("Hello.", picture("small"))
    said = next(first).text
    answer = chat.ask("And that?")
    assert [message["content"] for message in chat.messages][1:] == [said, "And that?", answer]
    assert list(first) == [] and answer == cold(chat.messages[:-1])[0]
    assert chat.ask("Why?") == cold(chat.messages[:-1])[0]
    left = chat.stream("What is this?")
    next(left)
    chat.undo()
    left.close()
    assert len(chat.messages) == 6
    with pytest.raises(PromptError, match="the conversation is answering"):
        list(chat.stream("Hello.", progress=lambda *_: chat.ask("Why?")))  # type: ignore[arg-type, return-value]
    assert len(chat.messages) == 6 and chat.ask("Compare them, please.") == cold(chat.messages[:-1])[0]


@pytest.mark.backends("mlx", "numpy")
def test_ask_is_an_error_where_another_thread_ends_the_turn():
    """Between two responses: within one, that thread gets an error."""

    class Shared(Chat):
        def stream(self, *arguments, **named):
            for response in super().stream(*arguments, **named):
                yield response
                self.fork()

    with pytest.raises(PromptError, match=r"another thread's call ended the answer; use `Engine\.chat`"):
        Shared(*load("demo"), options=GenerationOptions(max_tokens=4)).ask("Hello.")


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_an_answer_that_was_cut_off_goes_on_to_the_whole_one(cut):
    model, processor = load("demo")
    scene = Path(__file__).parent.parent / "examples" / "scene.png"
    whole = Chat(model, processor).ask("What is in this image?", scene)
    chat = Chat(model, processor)
    *_, first = chat.stream("What is in this image?", scene, options=GenerationOptions(max_tokens=cut))
    begun = chat.messages[-1]["content"]
    pieces = list(chat.continue_final_message())
    assert first.finish_reason == "length" and pieces[-1].finish_reason == "stop"
    assert begun + said(pieces)[0] == chat.messages[-1]["content"] == whole
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert statistics(pieces).cached_tokens >= statistics_of(first).prompt_tokens
    assert said(chat.continue_final_message())[0] == "" and chat.messages[-1]["content"] == whole
    assert said(chat.retry())[0] == whole


def test_an_answer_goes_on_as_text_and_stays_where_that_fails():
    chat = Chat(*loaded(), options=SHORT)
    with pytest.raises(PromptError, match="there is no answer to continue"):
        list(chat.continue_final_message())
    chat.ask("Hello.")
    question = chat.messages[0]

    def tokens(answer: object) -> int:
        chat.messages = [question, {"role": "assistant", "content": answer}]
        return statistics(list(chat.continue_final_message())).prompt_tokens

    assert tokens("caf\ufffd") == tokens("caf")  # a character that was cut is written anew
    assert tokens("a <image> b") > tokens("a b") + 2  # text, for which no picture is missing
    for answer in ([{"type": "text", "text": "a"}], None):
        with pytest.raises(PromptError, match="only a text can be continued"):
            tokens(answer)
    chat.messages = before = [question, {"role": "assistant", "content": "Well,"}]
    assert list(chat.continue_final_message(stop=lambda: True))[-1].finish_reason == "cancelled"
    assert chat.messages == before
    with pytest.raises(OptionError):
        list(chat.continue_final_message(options=3))  # type: ignore[arg-type]
    assert chat.messages == before


def test_arguments_of_a_chat_are_checked():
    model, processor = loaded()
    for wrong, words in (
        ({"options": {}}, "options is dict, expected GenerationOptions"),
        ({"vision_cache": 3}, "vision_cache is int, expected a VisionCache"),
        ({"control_tokens": "x"}, "control_tokens is 'x', expected True or False"),
    ):
        with pytest.raises(OptionError, match=words):
            Chat(model, processor, **wrong)
    with pytest.raises(PromptError, match="role is 'pirate', expected 'user' or 'tool'"):
        Chat(model, processor).ask("Hello.", role="pirate")  # type: ignore[arg-type]
    for name in ("stop", "progress"):
        with pytest.raises(OptionError, match=f"{name} is 3, expected a function"):
            Chat(model, processor).ask("Hello.", **{name: 3})  # type: ignore[arg-type]


def test_the_same_ids_with_another_picture_are_another_prompt():
    model, processor = loaded()
    one = picture("landscape")
    other = Image.fromarray(255 - np.asarray(one))
    chat = Chat(model, processor, options=SHORT)
    chat.ask("What is this?", one)
    chat.undo()
    chat.ask("What is this?", other)
    assert chat.messages[-1]["content"] == cold(chat.messages[:-1])[0]


def test_conversations_that_begin_alike_share_their_beginning():
    prefixes, system = PromptCache(), "Look well. " * 40
    cached = []
    for text in ("What is this?", "Why?", "What is this?"):
        chat = Chat(*loaded(), system=system, options=SHORT, prompt_cache=prefixes)
        *_, last = chat.stream(text, picture("landscape"))
        assert chat.messages[-1]["content"] == cold(chat.messages[:-1])[0]
        assert chat.ask("And now?") == cold(chat.messages[:-1])[0]
        cached.append(statistics_of(last).cached_tokens)
    rest = statistics_of(last).prompt_tokens - cached[1]
    assert cached[0] == 0 and rest < 45, "the picture is behind the system's text"
    assert cached[2] == statistics_of(last).prompt_tokens, "the same turn as the first one's"
    smaller = Chat(*loaded(), system=system, options=SHORT, prompt_cache=prefixes, max_image_tokens=40)
    *_, last = smaller.stream("Why?", picture("landscape"))
    assert 0 < statistics_of(last).cached_tokens < cached[1], "the system's text only: the picture is seen otherwise"


def test_a_conversation_keeps_its_own_copy_of_a_picture():
    chat, given = Chat(*loaded(), options=SHORT), picture("small").copy()
    chat.ask("What is this?", given)
    given.paste((0, 0, 0), (0, 0, *given.size))
    twin = Chat(*loaded(), options=SHORT)
    twin.ask("What is this?", picture("small"))
    assert chat.ask("And now?") == twin.ask("And now?")
    assert chat.messages[0]["content"][0]["image"].tobytes() == picture("small").convert("RGB").tobytes()


def test_the_time_to_the_first_token_includes_reading_the_pictures(monkeypatch):
    def slow(*arguments):
        time.sleep(0.3)
        return load_image(*arguments)

    monkeypatch.setattr(turn_pictures, "load_image", slow)
    *_, last = Chat(*loaded(), options=SHORT).stream("What is this?", picture("small"))
    assert statistics_of(last).time_to_first_token > 0.3


@pytest.mark.parametrize("ask", ["generate", "chat", "batch"])
def test_out_of_memory_at_the_first_evaluation_is_a_typed_error(monkeypatch, ask):
    """As lazy back ends have it: the text's only chunk is computed when its last logits are."""
    model, processor = loaded()

    def fail(*_):
        raise RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum")

    monkeypatch.setattr(mx, "async_eval", fail)
    if ask == "batch":
        answers = list(generate_batch(model, processor, [GenerationRequest("Hi."), GenerationRequest("Why?")]))
        assert all(isinstance(answer.error, OutOfMemoryError) for answer in answers)
        return
    with pytest.raises(OutOfMemoryError):
        generate(model, processor, "Hi.") if ask == "generate" else Chat(*loaded(), options=SHORT).ask("Hi.")


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
    with pytest.raises(PromptError, match=r"images\[1\] is None, expected a picture"):
        chat.ask("What is it?", [picture("small"), None])
    with pytest.raises(PromptError, match="the text is int"):
        chat.ask(3)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"the prompt has \d+ tokens, but the model has"):
        chat.ask("Hello. " * 50_000)
    assert chat.messages == before
    assert chat.ask("Why?") == cold(chat.messages[:-1])[0]


def test_what_is_wrong_with_a_turn_is_said_before_what_is_wrong_with_a_cache():
    cache = PromptCache()
    other = Chat(*load(GOLDEN / "gen2"), options=SHORT, prompt_cache=cache)
    other.ask("Hello. " * 30)
    chat = Chat(*loaded(), options=SHORT, prompt_cache=cache)
    with pytest.raises(PromptError, match="the text is int"):
        chat.ask(3)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="no such picture"):
        chat.ask("Hello.", "/absent.png")
    with pytest.raises(OptionError, match="prompt_cache holds what another model made"):
        chat.ask("Hello.")
    assert chat.messages == [] and len(cache)
    cache.clear()
    assert chat.ask("Hello.") == cold(chat.messages[:-1])[0]


def test_a_closed_stream_keeps_what_was_said():
    model, processor = loaded()
    chat = Chat(model, processor, options=GenerationOptions(max_tokens=30))
    stream = chat.stream("Hello.")
    said = next(stream).text + next(stream).text
    stream.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert chat.ask("Go on.", options=SHORT) == cold(chat.messages[:-1])[0]


def test_a_conversation_that_cannot_be_written_leaves_no_file(tmp_path):
    chat = Chat(*loaded(), system="half a character: \ud83d")
    with pytest.raises(OutputError, match=r"talk\.json: cannot be written"):
        chat.save(tmp_path / "talk.json")
    with pytest.raises(OutputError, match=r"x\.json: cannot be written \(No such file"):
        chat.save(tmp_path / "no folder" / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_whose_writing_is_interrupted_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Chat(*loaded(), system="Be brief.").save(tmp_path / "talk.json")
    assert list(tmp_path.iterdir()) == []


def test_only_saved_conversations_are_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = Chat(*loaded(), system="Be brief.")
    (tmp_path / "mine.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to mine").symlink_to("mine.txt")
    (tmp_path / "to nothing").symlink_to("nothing")
    for path, match in (
        ("mine.txt", "is there already and is no saved conversation"),
        ("to mine", "is there already and is no saved conversation"),
        ("to nothing", "is a link to a file that is not there"),
        ("pipe", "is a device or pipe"),
        ("/dev/null", "is a device or pipe"),
        (".", "is a folder"),
        ("..", "is a folder"),
        ("new/", "is a folder"),
        ("", "the empty name: is no name of a file"),
        ("a\0b", "is no name of a file"),
        ("x" * 300, "cannot be written"),
        (None, "None is no path"),
    ):
        before = sorted(entry.name for entry in tmp_path.iterdir())
        with pytest.raises(OutputError, match=match) as refused:
            chat.save(path)  # type: ignore[arg-type]
        assert len(str(refused.value).splitlines()) == 1
        assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    assert (tmp_path / "mine.txt").read_text() == "mine"
    chat.save("talk.json")
    (tmp_path / "latest").symlink_to("talk.json")
    chat.messages.append({"role": "user", "content": "more"})
    chat.save("latest")
    assert (tmp_path / "latest").is_symlink() and "more" in (tmp_path / "talk.json").read_text()
    (tmp_path / "empty").touch()
    chat.save("empty")
    assert (tmp_path / "empty").read_text() == (tmp_path / "talk.json").read_text()


def test_only_bounded_regular_files_and_allowed_pictures_are_loaded(tmp_path):
    model, processor = loaded()
    chat = Chat(model, processor, system="Be brief.")
    kept = list(chat.messages)
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    (tmp_path / "latin").write_bytes(b"\xff")
    (tmp_path / "number").write_text('{"format": ' + "9" * 10_000 + "}")
    for path, match in (
        (tmp_path / "pipe", "cannot be read"),
        ("/dev/zero", "cannot be read"),
        (tmp_path / "huge", "has more than 1 GiB"),
        (tmp_path / "latin", r"is not a saved conversation \(not UTF-8, byte 0\)"),
        (tmp_path / "number", "too long a number"),
        (tmp_path, "cannot be read"),
        ("", "is no name of a file"),
        ("a\0b", "is no name of a file"),
        (3, "3 is no path"),
    ):
        with pytest.raises(PromptError, match=match) as refused:
            chat.load(path)  # type: ignore[arg-type]
        assert len(str(refused.value).splitlines()) == 1 and chat.messages == kept
    chat.messages.append({"role": "user", "content": [{"type": "image", "image": picture("small").convert("RGB")}]})
    chat.save(tmp_path / "talk.json")
    strict = Lfm2VlProcessor.from_pretrained(GOLDEN / "gen2", source_policy=SourcePolicy(max_pixels=4))
    careful = Chat(model, strict, system="Be brief.")
    with pytest.raises(PromptError, match=r"talk\.json: .*message 2, a picture: .*pixels"):
        careful.load(tmp_path / "talk.json")
    assert careful.messages == kept


def test_what_is_not_there_cannot_be_undone_or_loaded(tmp_path):
    chat = Chat(*loaded())
    with pytest.raises(PromptError, match="no turn to take back"):
        chat.undo()
    with pytest.raises(PromptError, match="no answer to try again"):
        next(chat.retry())
    for content, match in (
        ("{}", "is not a saved conversation"),
        ("[1", "is not a saved conversation"),
        ("[1]", "has no 'format' and list of 'messages'"),
        ('{"format": 1, "messages": [3]}', r"\(message 1 has no role\)"),
        ('{"format": 1, "messages": [{"role": "user"}]}', r"\(message 1 has no content\)"),
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
