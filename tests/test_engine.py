"""The engine from many threads and from asyncio: answers are those of single runs, whatever the neighbours do."""

import asyncio
import queue
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import picture
from engines import FOREVER, SHORT, all_read, alone, loaded, occupied

from mlx_lfm2vl import GenerationOptions, GenerationRequest, load, stream_generate
from mlx_lfm2vl.errors import ConfigError, ImageError, OptionError, PromptError
from mlx_lfm2vl.generation.request import encode, longest_token

NAMES = ("landscape", "small", "portrait")


def test_an_answer_from_another_thread(engine):
    completion = engine.submit("What is this?", picture("small"), options=SHORT).result(60)
    assert completion.tokens == alone("What is this?", "small", 6)
    assert completion.finish_reason == "length"
    assert engine.generate("What is this?", picture("small"), options=SHORT) == completion.text
    pieces = list(engine.stream("What is this?", picture("small"), options=SHORT))
    assert "".join(piece.text for piece in pieces) == completion.text
    assert pieces[-1].statistics.image_tokens == completion.statistics.image_tokens > 0


async def text_of(pieces) -> str:
    return "".join([piece.text async for piece in pieces])


def test_options_are_given_by_name_as_for_generate(engine):
    named = {"max_tokens": 6, "temperature": 0.0}
    request = engine.submit("What is this?", picture("small"), **named)
    assert request.result(60).tokens == alone("What is this?", "small", 6)
    whole = request.result().text
    assert engine.generate("What is this?", picture("small"), **named) == whole
    assert "".join(each.text for each in engine.stream("What is this?", picture("small"), **named)) == whole
    assert asyncio.run(text_of(engine.astream("What is this?", picture("small"), **named))) == whole
    over = {"options": GenerationOptions(max_tokens=1), "max_tokens": 2}
    assert engine.submit("Hello.", **over).result(60).tokens == alone("Hello.", None, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_token": 2}, "did you mean max_tokens"),
        ({"sytem": "x"}, "did you mean system"),
        ({"max_image_token": 9}, "did you mean max_image_tokens"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"stop": lambda: False}, "`Request.cancel` ends an answer"),
        ({"options": {"max_tokens": 2}}, "options is dict, expected GenerationOptions"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_refused_by_the_call(engine, given, message):
    engine.wait_until_ready()
    for call in (engine.submit, engine.generate, engine.stream):
        with pytest.raises(OptionError, match=message):
            call("Hello.", **given)
    assert engine.queue_length == 0


def test_many_threads_with_random_cancels(engine):
    """8 threads x 12 requests; those that are not cancelled get just what they would get alone."""

    def client(seed: int) -> int:
        rng = random.Random(seed)
        whole = 0
        for _ in range(12):
            text = rng.choice(["Hello.", "What is this?", "Why? " * 9])
            name = rng.choice([*NAMES, None])
            tokens = rng.randint(1, 9)
            options = GenerationOptions(max_tokens=tokens)
            request = engine.submit(text, picture(name) if name else None, options=options, wait=60)
            expected = alone(text, name, tokens)
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.05)
                request.cancel()
                completion = request.result(60)
                assert completion.tokens == expected[: len(completion.tokens)]
            else:
                assert request.result(60).tokens == expected
                whole += 1
        return whole

    for text in ("Hello.", "What is this?", "Why? " * 9):
        for name in (*NAMES, None):
            longest = alone(text, name, 9)
            for tokens in range(1, 10):
                assert alone(text, name, tokens) == longest[:tokens]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) > 40


def test_questions_that_wait_together_are_answered_together(engine):
    blocker, release = occupied(engine)
    requests = [engine.submit(f"Question {n}.", options=SHORT) for n in range(5)]
    all_read(engine)
    release.set()
    blocker.result(30)
    completions = [request.result(60) for request in requests]
    assert [c.tokens for c in completions] == [alone(f"Question {n}.", None, 6) for n in range(5)]
    # one prefill and one decode for all: they end within one step of each other
    assert len({c.statistics.peak_memory for c in completions}) <= 2


def test_a_question_joins_those_that_are_being_answered(engine, monkeypatch):
    """Nobody waits for the end of a long answer, and nobody's answer changes."""
    long = engine.submit("Tell me everything.", options=FOREVER)
    said = iter(long)
    tokens = [token for _ in range(3) for token in next(said).tokens]
    names = [*NAMES, None, "small", "landscape"]
    joined = [
        engine.submit(
            f"Question {n}.",
            picture(name) if name else None,
            options=GenerationOptions(max_tokens=2 + n % 3),
            wait=60,
        )
        for n, name in enumerate(names)
    ]
    sampled = [
        engine.submit("Hello.", options=GenerationOptions(max_tokens=8, temperature=1.5, seed=n, logprobs=True))
        for n in range(2)
    ]
    wrong = engine.submit("?", "absent.png")
    for n, (name, request) in enumerate(zip(names, joined, strict=True)):
        assert request.result(60).tokens == alone(f"Question {n}.", name, 2 + n % 3)
    with pytest.raises(ImageError):
        wrong.result(60)
    assert not long.done
    for n, request in enumerate(sampled):
        options = GenerationOptions(max_tokens=8, temperature=1.5, seed=n, logprobs=True)
        pieces = list(stream_generate(*loaded(), "Hello.", options=options))
        assert request.result(60).tokens == tuple(token for piece in pieces for token in piece.tokens)
    long.cancel()
    tokens += [token for piece in said for token in piece.tokens]
    assert tuple(tokens) == alone("Tell me everything.", None, len(tokens))


def test_answers_go_on_while_a_long_prompt_joins_them(engine):
    tokens_at: list[int] = []
    wild = GenerationOptions(max_tokens=100_000, temperature=1.5, seed=2)
    running = engine.submit("Tell me everything.", options=wild)
    doomed = engine.submit("Tell me nothing.", options=FOREVER)
    readers = iter(running), iter(doomed)
    for reader in readers:
        next(reader)

    def progress(done: int, total: int) -> None:
        """In the engine's thread, which has delivered what the others have said so far."""
        tokens_at.append(sum(len(piece.tokens) for piece in running._items))
        if len(tokens_at) == 2:
            doomed.cancel()
        if len(tokens_at) == 3:
            assert doomed.done

    text = "One after the other. " * 350
    joined = engine.submit(text, options=SHORT, progress=progress)
    try:
        assert joined.result(300).tokens == alone(text, None, 6)
    finally:
        running.cancel()  # else nobody after this test has a turn
    assert doomed.result(60).finish_reason == "cancelled"
    assert len(tokens_at) > 8
    # one token for each piece of the prompt; a few of them wait for the rest of their character
    assert tokens_at[-1] - tokens_at[0] >= len(tokens_at) / 2


def test_a_short_question_does_not_wait_for_a_long_prompt(engine):
    """Though both were taken together."""
    _, release = occupied(engine)
    seen: list[int] = []
    long = engine.submit("Why? " * 1500, options=SHORT, progress=lambda done, _: seen.append(done))
    short = engine.submit("Hello.", options=SHORT, sink=lambda _: seen.append(-1))
    all_read(engine)
    release.set()
    assert short.result(300).tokens == alone("Hello.", None, 6)
    assert long.result(300).tokens == alone("Why? " * 1500, None, 6)
    assert sum(done > 0 for done in seen[: seen.index(-1)]) <= 8 < sum(done > 0 for done in seen) - 4


def test_a_question_that_fails_hurts_no_other(engine, tmp_path):
    good = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
    bad = engine.submit("?", tmp_path / "absent.png")
    option = engine.submit("Hello.", max_image_tokens=-3)
    good += [engine.submit("Hello.", options=SHORT)]
    with pytest.raises(ImageError, match=r"absent\.png"):
        bad.result(60)
    with pytest.raises((ConfigError, OptionError), match="max_image_tokens"):
        next(iter(option))
    assert {request.result(60).tokens for request in good} == {alone("Hello.", None, 6)}


def test_what_has_come_is_kept_for_every_reader(engine):
    delivered: queue.SimpleQueue = queue.SimpleQueue()
    request = engine.submit("Hello.", options=SHORT, sink=delivered.put)
    pieces = list(request)
    assert list(request) == pieces == [delivered.get() for _ in pieces]
    assert request.result(1) is not None and request.result(1).tokens == alone("Hello.", None, 6)
    request = engine.submit("Hello.", options=SHORT)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(request.result, 60) for _ in range(2)]
        read = [pool.submit(list, request) for _ in range(2)]
        assert {result.result().tokens for result in results} == {alone("Hello.", None, 6)}
        assert read[0].result() == read[1].result() == list(request)
    failing = engine.submit("?", "absent.png")
    for _ in range(2):
        with pytest.raises(ImageError):
            list(failing)
        with pytest.raises(ImageError):
            failing.result(1)
    late = engine.submit("Tell me everything.", options=FOREVER)
    with pytest.raises(TimeoutError):
        late.result(0.2)
    late.cancel()
    assert late.result(60).finish_reason == "cancelled"


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised():
    """By a bound that no text which fits can pass: its longest token, as often as there are positions."""
    model, processor = load("demo")
    positions, longest = model.config.text_config.max_position_embeddings, longest_token(processor.tokenizer)
    assert longest == max(len(token) for token in processor.tokenizer.get_vocab())
    with pytest.raises(PromptError, match=rf"characters, so at least \d+ tokens, but the model has {positions} pos"):
        encode(model, processor, GenerationRequest("the quick fox " * 300_000))
    with pytest.raises(PromptError, match=r"the prompt has \d+ tokens, but"):
        encode(model, processor, GenerationRequest("a " * positions))
    golden, files = loaded()
    assert longest_token(files.tokenizer) is not None
    assert len(encode(golden, files, GenerationRequest("Hello. " * 400)).ids) > 400


def test_arrays_and_messages_may_be_changed_once_they_are_submitted(engine):
    array = np.array(picture("small"))
    talk = engine.chat()
    content: list[object] = [{"type": "image", "image": array}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    _, release = occupied(engine)
    requests = [engine.submit("What?", array, options=SHORT), engine.submit(messages, options=SHORT)]
    requests.append(talk.submit("What?", [array], options=SHORT))
    array[:] = 0
    content.clear()
    release.set()
    assert {request.result(60).tokens for request in requests} == {alone("What?", "small", 6)}


def test_asyncio(engine):
    async def ask(n: int) -> tuple[int, ...]:
        pieces = [piece async for piece in engine.astream(f"Question {n}.", options=SHORT)]
        return tuple(token for piece in pieces for token in piece.tokens)

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        _, release = occupied(engine)
        asking = asyncio.gather(*(ask(n) for n in range(4)))
        while ticks <= 3:  # the loop goes on
            await asyncio.sleep(0.005)
        assert not asking.done()
        release.set()
        answers = await asking
        async for _ in engine.astream("Tell me everything.", options=FOREVER):
            break  # leaving the loop stops the work

        async def listen():
            async for _ in engine.astream("Tell me everything.", options=FOREVER):
                pass

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.3)
        listening.cancel()  # and so does cancelling the task
        with pytest.raises(ImageError):
            async for _ in engine.astream("?", "absent.png"):
                pass
        ticking.cancel()
        return answers

    assert asyncio.run(main()) == [alone(f"Question {n}.", None, 6) for n in range(4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deadline": 1e12}, "deadline is 1000000000000.0, expected a number of seconds"),
        ({"deadline": -1}, "deadline is -1, expected a number of seconds"),
        ({"deadline": "soon"}, "deadline is 'soon'"),
        ({"wait": None}, "wait is None"),
        ({"sink": 3}, "sink is 3, expected a function"),
        ({"progress": 5}, "progress is 5, expected a function"),
    ],
)
def test_arguments_of_a_request_are_checked(engine, arguments, words):
    with pytest.raises(OptionError, match=words):
        engine.submit("Hello.", **arguments)


@pytest.mark.parametrize("timeout", [1e12, -1, "soon", float("nan")])
def test_times_to_wait_are_checked(engine, timeout):
    request = engine.submit("Hello.", options=SHORT)
    for wait in (request.result, engine.wait_until_ready, engine.close):
        with pytest.raises(OptionError, match=f"timeout is {timeout!r}, expected a number of seconds"):
            wait(timeout)
    assert request.result(60).tokens == alone("Hello.", None, 6)
