"""Conversations of an engine: turns keep their order, and only answers wait for answers."""

import queue
import time
from dataclasses import replace

import pytest
from conftest import picture
from engines import FOREVER, SHORT, alone, loaded, occupied

from mlx_lfm2vl import Chat, GenerationOptions
from mlx_lfm2vl.errors import EngineThreadError, ImageError, PromptError


def test_chats_in_the_engine(engine):
    engine.wait_until_ready(60)
    engine.warm_up()
    chat = engine.chat(options=SHORT)
    first = chat.ask("What is this?", picture("landscape"))
    second = chat.ask("And now?")
    assert [message["content"] for message in chat.messages[1::2]] == [first, second]
    assert "".join(piece.text for piece in chat.retry()) == second
    twin = chat.fork()
    chat.undo()
    assert len(chat.messages) == 2 and len(twin.messages) == 4
    assert chat.ask("And now?") == second
    with pytest.raises(ImageError):
        chat.ask("?", "absent.png")
    delivered: queue.SimpleQueue = queue.SimpleQueue()
    request = chat.submit("And now?", sink=delivered.put, wait=1, deadline=60)
    last = None
    while last is None or last.finish_reason is None:
        last = delivered.get(timeout=60)
    assert request.done and last.statistics.cached_tokens > 0
    again = chat.submit_retry(sink=delivered.put)
    while not again.done:
        time.sleep(0.01)
    chat.reset()
    assert chat.messages == []


def test_an_answer_goes_on_in_an_engine_as_in_a_chat(engine):
    one, talk = Chat(*loaded(), options=SHORT), engine.chat(options=SHORT)
    with pytest.raises(PromptError, match="there is no answer to continue"):
        list(talk.continue_final_message())
    assert one.ask("Hello.") == talk.ask("Hello.")
    for _ in range(2):
        rest = "".join(response.text for response in one.continue_final_message())
        request = talk.submit_continue_final_message(deadline=60)
        assert request.result().text == rest and talk.messages == one.messages
    assert "".join(response.text for response in talk.continue_final_message())
    assert len(talk.messages) == 2


@pytest.mark.parametrize("call", ["undo", "reset"])
def test_a_turn_that_its_own_sink_closes_ends(engine, call):
    talk = engine.chat()
    talk.ask("Hello.", options=SHORT)

    def sink(item: object) -> None:
        if getattr(item, "finish_reason", "error") is None:
            getattr(talk, call)()

    request = talk.submit("Tell me everything.", options=replace(FOREVER, temperature=1.5, seed=1), sink=sink)
    assert request.result(30).finish_reason == "cancelled"


def test_two_conversations_and_a_question_are_answered_together(engine):
    """All have their first tokens while none has ended; each answer is the one that it would be alone."""
    talks = [engine.chat(), engine.chat()]
    texts = ["Tell me everything.", "Tell me nothing."]
    long = GenerationOptions(max_tokens=300)
    requests = [talk.submit(text, options=long) for talk, text in zip(talks, texts, strict=True)]
    requests.append(engine.submit("What is this?", options=long))
    for request in requests:
        request.take(0, 60)
    assert not any(request.done for request in requests)
    for request, text in zip(requests, [*texts, "What is this?"], strict=True):
        assert request.result(60).tokens == alone(text, None, 300)
    for talk, text, request in zip(talks, texts, requests, strict=False):
        assert talk.messages[0]["content"] == text
        *_, last = talk.stream("And now?", options=SHORT)
        assert last.statistics.cached_tokens >= request.result().statistics.prompt_tokens


@pytest.mark.parametrize("call", ["undo", "reset", "fork", "save", "load"])
def test_nothing_but_an_answer_waits_for_an_answer(engine, tmp_path, call):
    """The engine's thread is held all the while."""
    talk = engine.chat()
    talk.ask("Hello.", options=SHORT)
    talk.save(tmp_path / "talk.json")
    _, release = occupied(engine)
    pending = talk.submit("And now?", options=SHORT)
    other = engine.chat(system="Be brief.")
    arguments = [tmp_path / "talk.json"] if call in ("save", "load") else []
    made = getattr(talk, call)(*arguments)
    assert not pending.done
    release.set()
    assert pending.result(60).finish_reason in ("stop", "length", "cancelled")
    assert other.ask("Hello.", options=SHORT)
    if call == "fork":
        assert len(made.messages) == 2 and made.ask("And now?", options=SHORT)


def test_a_turn_tells_of_its_prompt(engine):
    told: list[tuple[int, int]] = []
    engine.chat().submit("Never asked before.", options=SHORT, progress=lambda *at: told.append(at)).result(60)
    assert told and told[-1][0] == told[-1][1] > 0


def test_a_stop_that_fails_ends_its_own_request(engine):
    bad = engine.chat().submit("Hello.", options=FOREVER, stop=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


def test_a_turn_that_is_cancelled_while_it_is_read_touches_no_other(engine, slow_path):
    talk = engine.chat()
    first = talk.submit("What is this?", slow_path, options=SHORT)
    assert slow_path.asked.wait(60)
    first.cancel()
    second = talk.submit("Hello.", options=GenerationOptions(max_tokens=60))
    second.take(0, 60)
    slow_path.release.set()
    assert second.result(60).tokens == alone("Hello.", None, 60)
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]


def test_undo_takes_back_the_turn_that_waits_for_its_first_word(engine):
    talk = engine.chat()
    talk.ask("Hello.", options=SHORT)
    _, release = occupied(engine)
    pending = talk.submit("And now?", options=SHORT)
    end = time.monotonic() + 30
    while pending.turn is None and time.monotonic() < end:
        time.sleep(0.001)
    talk.undo()
    release.set()
    assert pending.result(60).finish_reason == "cancelled" and len(talk.messages) == 2
    talk.undo()
    assert talk.messages == []


@pytest.mark.parametrize("call", ["save", "fork"])
def test_what_only_reads_a_conversation_ends_no_answer(engine, tmp_path, call):
    talk = engine.chat()
    running = talk.submit("Tell me everything.", options=GenerationOptions(max_tokens=200))
    running.take(0, 60)
    getattr(talk, call)(*([tmp_path / "talk.json"] if call == "save" else []))
    assert running.result(60).tokens == alone("Tell me everything.", None, 200)


def test_a_turn_whose_sink_fails_is_no_part_of_its_conversation(engine):
    talk = engine.chat()

    def sink(_: object) -> None:
        raise ValueError("mine")

    warned = pytest.warns(RuntimeWarning, match="the sink of a request failed")
    with warned, pytest.raises(ValueError, match="mine"):
        talk.submit("Hello.", options=FOREVER, sink=sink).result(60)
    assert talk.messages == [] and talk.fork().messages == []


def test_a_turn_may_have_a_stop_of_its_own(engine):
    talk = engine.chat(options=FOREVER)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    request = talk.submit("Tell me everything.", stop=stop)
    assert request.result(30).finish_reason == "cancelled" and asked > 20
    assert engine.submit("Question.", options=SHORT).result(30).finish_reason == "length"


def test_conversations_of_an_engine_share_encoded_pictures(engine):
    engine.clear_caches()
    features = engine._worker.vision_cache
    for _ in range(3):
        engine.chat(options=SHORT).ask("What is this?", picture("small"))
        assert len(features) == 1


def test_a_turn_whose_wait_is_interrupted_is_cancelled(engine):
    talk = engine.chat(options=SHORT)
    refused: list[object] = []

    def stop() -> bool:
        if not refused:
            try:
                refused.append(talk.ask("And now?"))  # in the engine's own thread nobody can wait for it
            except EngineThreadError as error:
                refused.append(error)
        return False

    assert talk.submit("Hello.", stop=stop).result(60)
    assert isinstance(refused[0], EngineThreadError)
    talk.ask("Why?")
    assert [message["content"] for message in talk.messages if message["role"] == "user"] == ["Hello.", "Why?"]


def test_the_turns_of_a_chat_keep_their_order(engine, slow_path):
    """Also where the first one's picture comes last. What changes a conversation does not wait for them."""
    expected = engine.chat(options=SHORT)
    answers = [expected.ask("What is this?", picture("small")), expected.ask("And now?")]
    talk = engine.chat(options=SHORT)
    first, second = talk.submit("What is this?", slow_path), talk.submit("And now?")
    assert slow_path.asked.wait(60)
    with pytest.raises(PromptError, match="no turn to take back"):
        talk.undo()
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
    assert not first.done and not second.done
    slow_path.release.set()
    assert [first.result(60).text, second.result(60).text] == answers
    talk.undo()
    assert [message["content"] for message in talk.messages[1:]] == answers[:1]
