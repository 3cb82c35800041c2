"""What an app that lives long needs of an engine: switching models, giving memory back, asyncio, and its state."""

import asyncio
import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import GOLDEN, picture

from mlx_lfm2vl import (
    Engine,
    EngineClosedError,
    GenerationOptions,
    ImageError,
    MemoryUse,
    QueueFullError,
    generate,
    load,
)
from mlx_lfm2vl.config.processor import ImageProcessorConfig
from mlx_lfm2vl.generation.arguments import ImageOverrides

SHORT = GenerationOptions(max_tokens=4, temperature=0.0)
LONG = GenerationOptions(max_tokens=10_000, temperature=3.0, seed=1)


@pytest.fixture(scope="module")
def engine(endless):
    with Engine(str(endless)) as made:
        made.wait_until_ready()
        yield made


def watched(folder: Path = GOLDEN / "gen2") -> tuple[Any, list[Any]]:
    """A loader, and weak references to the models that it loaded."""
    models: list[Any] = []

    def loader():
        model, processor = load(folder)
        models.append(weakref.ref(model))
        return model, processor

    return loader, models


@pytest.mark.parametrize("how", ["close", "unload", "reload"])
def test_a_model_is_let_go_though_requests_and_conversations_are_kept(how, tmp_path, endless):
    loader, models = watched(endless)
    with Engine(loader) as engine:
        talk = engine.chat(options=SHORT)
        talk.ask("What is this?", picture("small"))
        request, running = engine.submit("Hello.", options=SHORT), engine.submit("Hello.", options=LONG)
        request.result()
        running.take(0)
        {"close": engine.close, "unload": engine.unload, "reload": lambda: engine.reload(loader)}[how]()
        if how == "reload":
            engine.wait_until_ready()
        assert models[0]() is None
        assert running.result(60).finish_reason == "cancelled"
        assert request.result().text and len(talk.messages) == 2
        talk.save(tmp_path / "talk.json")
        twin = talk.fork()
        if how == "close":
            with pytest.raises(EngineClosedError):
                twin.ask("And now?")
        else:
            assert twin.ask("And now?") is not None and len(twin.messages) == 4


@pytest.mark.sampled(4)
@pytest.mark.parametrize("how", ["close", "unload", "reload"])
@pytest.mark.parametrize("asked", ["submit", "turn", "count_tokens"])
def test_a_model_is_let_go_though_a_picture_is_still_awaited(how, asked, slow_path):
    loader, models = watched()
    with Engine(loader) as engine, ThreadPoolExecutor(1) as pool:
        work = {
            "submit": lambda: engine.submit("What is this?", slow_path, options=SHORT).result(60),
            "turn": lambda: engine.chat(options=SHORT).submit("What is this?", slow_path).result(60),
            "count_tokens": lambda: engine.count_tokens("What is this?", slow_path),
        }[asked]
        waiting = pool.submit(work)
        assert slow_path.asked.wait(60)
        {"close": engine.close, "unload": engine.unload, "reload": lambda: engine.reload(loader)}[how]()
        if how == "reload":
            engine.wait_until_ready()
        gc.collect()
        assert models[0]() is None
        slow_path.release.set()
        waiting.exception(60)


@pytest.mark.parametrize("how", ["close", "unload", "reload"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_load_that_failed_keeps_no_model(how, asked):
    loader, models = watched()

    def fail() -> Any:
        model, _ = loader()
        raise ValueError(f"cannot use {type(model)}")

    with Engine(fail) as engine:
        if asked:
            with pytest.raises(ValueError, match="cannot use"):
                engine.generate("Hello.")
        with contextlib.suppress(ValueError):
            engine.wait_until_ready()
        {"close": engine.close, "unload": engine.unload, "reload": lambda: engine.reload(loader)}[how]()
        if how == "reload":
            engine.wait_until_ready()
        assert models[0]() is None


def test_models_are_switched_in_one_thread():
    names = [GOLDEN / "gen2", GOLDEN / "gen25"]
    expected = [generate(*load(name), "Hello.", options=SHORT) for name in names]
    with Engine(names[0]) as engine:
        talk = engine.chat(options=SHORT)
        threads = set()
        for number in (0, 1, 0, 1):
            engine.reload(names[number])
            assert engine.generate("Hello.", options=SHORT) == expected[number]
            assert engine.model_name == str(names[number])
            assert talk.ask("Hello.") == expected[number]
            talk.undo()
            threads.add(engine.call(lambda *_: threading.get_ident()))
        assert len(threads) == 1


@pytest.mark.parametrize("how", ["unload", "reload", "close"])
def test_a_result_that_another_thread_prevents_is_an_error(how, endless):
    """Not an empty answer, nor half of one."""
    with Engine(endless, max_batch=1) as engine, ThreadPoolExecutor(6) as pool:
        let_go = {"close": engine.close, "unload": engine.unload, "reload": lambda: engine.reload(endless)}[how]
        begun = threading.Event()
        running = pool.submit(engine.generate, "Hello.", options=LONG, sink=lambda _: begun.set())
        assert begun.wait(60)
        waiting: list[Future[Any]] = [
            pool.submit(engine.generate, "Hello."),
            pool.submit(engine.call, lambda *_: 2),
            pool.submit(engine.warm_up),
            pool.submit(engine.chat().ask, "Hello."),
            pool.submit(lambda: asyncio.run(engine.chat().aask("Hello."))),
        ]
        while engine.queue_length < len(waiting):
            time.sleep(0.01)
        let_go()
        for future in [running, *waiting]:
            with pytest.raises(EngineClosedError):
                future.result(30)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("how", ["close", "unload", "reload"])
@pytest.mark.parametrize("ask", ["ask", "aask"])
def test_a_turn_that_is_cut_off_by_its_engine_is_an_error(how, ask, endless):
    with Engine(endless) as engine, ThreadPoolExecutor(1) as pool:
        let_go = {"close": engine.close, "unload": engine.unload, "reload": lambda: engine.reload(endless)}[how]
        talk, begun = engine.chat(options=LONG), threading.Event()

        def turn() -> str:
            if ask == "ask":
                return talk.ask("Hello.", sink=lambda _: begun.set())
            return asyncio.run(talk.aask("Hello.", sink=lambda _: begun.set()))

        answer = pool.submit(turn)
        assert begun.wait(60)
        let_go()
        with pytest.raises(EngineClosedError, match="let go of its model before the result was whole"):
            answer.result(30)
        assert talk.messages[-1]["role"] == "assistant" and talk.messages[-1]["content"]


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("how", ["stop", "reset"])
def test_a_turn_that_the_app_itself_ends_is_no_error(how, engine):
    with ThreadPoolExecutor(1) as pool:
        talk, begun = engine.chat(options=LONG), threading.Event()
        stop = begun.is_set if how == "stop" else None
        answer = pool.submit(talk.ask, "Hello.", sink=lambda _: begun.set(), stop=stop)
        assert begun.wait(60)
        if how == "reset":
            talk.reset()
        assert answer.result(30) and len(talk.messages) == (2 if how == "stop" else 0)


def test_an_unloaded_model_is_loaded_by_the_next_request():
    loader, models = watched()
    with Engine(loader) as engine:
        expected = engine.generate("Hello.", options=SHORT)
        before = engine.memory().active
        engine.unload(timeout=30)
        assert not engine.ready and engine.context_length is None
        assert engine.memory().active < before
        assert engine.generate("Hello.", options=SHORT) == expected and engine.ready
        engine.unload()
        engine.wait_until_ready()
        assert len(models) == 3


def test_a_model_that_does_not_load_may_be_followed_by_one_that_does(tmp_path):
    with Engine(tmp_path) as engine:
        for _ in range(2):
            with pytest.raises(OSError, match=r"has no config\.json"):
                engine.generate("Hello.")
        engine.reload("demo")
        assert engine.generate("Hello.", options=SHORT) is not None


def test_what_keeps_house_stands_in_no_queue(tmp_path, endless):
    with Engine(endless, max_queue=1, max_batch=1) as engine:
        talk = engine.chat(options=SHORT)
        talk.ask("Hello.")
        running = engine.submit("Hello.", options=LONG)
        running.take(0)
        engine.submit("Hello.")
        with pytest.raises(QueueFullError):
            engine.submit("Hello.")
        for work in (engine.clear_caches, talk.fork, lambda: talk.save(tmp_path / "talk.json"), talk.undo, engine.chat):
            work()
        assert not running.done
        assert engine.memory().vision_cache == 0


def test_a_place_in_the_queue_is_free_when_cancel_returns(endless):
    with Engine(endless, max_queue=2, max_batch=1) as engine:
        engine.submit("Hello.", options=LONG).take(0)
        waiting = [engine.submit("Hello.") for _ in range(2)]
        for _ in range(20):
            assert engine.queue_length == 2
            waiting.pop(0).cancel()
            waiting.append(engine.submit("Hello."))


def test_a_slow_sink_delays_nobody(engine):
    release = threading.Event()
    heard: list[Any] = []

    def sink(item: object) -> None:
        assert release.wait(60)
        heard.append(item)

    slow = engine.submit("Hello.", options=SHORT, sink=sink)
    assert slow.result(30).text == engine.generate("Hello.", options=SHORT)
    assert not heard
    release.set()
    end = time.monotonic() + 30
    while not heard or heard[-1].finish_reason is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert heard == list(slow)


def test_asyncio_reads_awaits_and_cancels(engine):
    expected = engine.generate("Hello.", options=SHORT)

    async def main() -> None:
        assert (await engine.submit("Hello.", options=SHORT)).text == expected
        pieces = [piece async for piece in engine.submit("Hello.", options=SHORT)]
        assert "".join(piece.text for piece in pieces) == expected and pieces[-1].finish_reason == "length"
        talk = engine.chat(options=SHORT)
        assert "".join([piece.text async for piece in talk.astream("Hello.")]) == expected
        assert await talk.aask("Hello.") == talk.messages[-1]["content"]
        long = engine.submit("Hello.", options=LONG)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(long, 0.1)
        assert long.result(60).finish_reason == "cancelled"
        async for _ in (left := engine.submit("Hello.", options=LONG)):
            break
        gc.collect()
        await asyncio.sleep(0)
        assert (await left).finish_reason == "cancelled"
        with pytest.raises(ImageError, match="absent"):
            await engine.submit("Hello.", "absent.png")
        async with Engine("demo") as other:
            assert await other.submit("Hello.", options=SHORT)
        assert other.closed

    asyncio.run(main())


def test_asyncio_waits_for_a_place_until_its_deadline_only(endless):
    async def ask(engine: Engine) -> None:
        with pytest.raises(QueueFullError):
            async for _ in engine.astream("Hello.", wait=600, deadline=0.2):
                pass
        with pytest.raises(QueueFullError):
            await engine.chat().aask("Hello.", wait=600, deadline=0.2)

    with Engine(endless, max_queue=1, max_batch=1) as engine:
        running = engine.submit("Hello.", options=LONG)
        running.take(0)
        engine.submit("Hello.")
        asyncio.run(ask(engine))
        assert not running.done


def test_the_state_of_an_engine_is_told(engine):
    made = Engine("demo")
    made.wait_until_ready()
    model = made.call(lambda model, _: model)
    assert made.ready and not made.closed and made.model_name == "demo" and made.queue_length == 0
    assert made.context_length == model.config.text_config.max_position_embeddings
    for prompt, images in (("Hello.", None), ("What is this?", [picture("small"), picture("photo")])):
        statistics = made.submit(prompt, images, options=SHORT).result().statistics
        assert statistics is not None and made.count_tokens(prompt, images) == statistics.prompt_tokens
    held = made.memory()
    assert isinstance(held, MemoryUse) and held.active == mx.get_active_memory() and held.vision_cache > 0
    made.close()
    assert made.closed and not made.ready and made.memory().vision_cache == 0
    assert Engine(lambda: load("demo")).model_name is None


def test_image_overrides_are_the_fields_of_the_policy():
    assert list(ImageOverrides.__annotations__) == [field.name for field in fields(ImageProcessorConfig)]


def gone(what: Callable[[], object]) -> bool:
    """Whether it has gone, or does within some seconds."""
    end = time.monotonic() + 20
    while what() is not None and time.monotonic() < end:
        time.sleep(0.02)
    return what() is None


@pytest.mark.sampled(4)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("last", ["an answer", "an error", "nothing", "a model that loads"])
def test_an_engine_that_nobody_holds_ends_after_its_requests(last):
    loader, models = watched()
    made = Engine(loader)
    if last != "a model that loads":
        made.wait_until_ready()
    thread = made._worker.thread
    request = None
    if last == "an answer":
        request = made.submit("Hello.", options=GenerationOptions(max_tokens=40))
    elif last == "an error":
        made.submit("Hello.", "absent.png")
    del made
    gc.collect()
    if last == "an answer":
        assert request is not None and request.result(60).finish_reason in ("length", "stop")
    thread.join(20)
    assert not thread.is_alive() and all(gone(model) for model in models)


def test_a_conversation_holds_its_engine(engine, endless):
    talk = Engine(endless).chat(options=SHORT)
    gc.collect()
    time.sleep(0.5)
    assert talk.ask("Hello.") == engine.generate("Hello.", options=SHORT)


def test_aclose_returns_though_all_threads_of_asyncio_wait_for_answers(endless):
    async def main() -> list[Any]:
        engine = Engine(endless)
        await asyncio.to_thread(engine.wait_until_ready)
        threads = range(min(32, (os.cpu_count() or 1) + 4))
        waiting = [asyncio.create_task(asyncio.to_thread(engine.generate, "Hello.", options=LONG)) for _ in threads]
        while engine._worker.waiting.idle:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(engine.aclose(), 60)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(each) for each in asyncio.run(main())} == {EngineClosedError}


@pytest.mark.parametrize("how", ["stream", "request", "chat"])
def test_who_leaves_async_for_early_leaves_no_work(how, endless):
    """Though the iterator is kept, and the event loop ends."""
    kept: list[Any] = []

    async def main(engine: Engine) -> None:
        talk = await asyncio.to_thread(engine.chat)
        kept.append(
            {
                "stream": lambda: engine.astream("Hello.", options=LONG),
                "request": lambda: aiter(engine.submit("Hello.", options=LONG)),
                "chat": lambda: talk.astream("Hello.", options=LONG),
            }[how]()
        )
        async for _ in kept[0]:
            break

    with Engine(endless) as engine:
        asyncio.run(main(engine))
        assert gone(lambda: None if engine._worker.waiting.idle else engine)


@pytest.mark.parametrize("how", ["astream", "await", "aask"])
def test_without_an_event_loop_of_asyncio_nothing_is_asked(how, engine):
    """In trio, say."""
    talk = engine.chat()

    async def wait() -> None:
        await engine.submit("Hello.", options=LONG)

    work = {
        "astream": lambda: engine.astream("Hello.", options=LONG).__anext__(),
        "await": wait,
        "aask": lambda: talk.aask("Hello.", options=LONG),
    }[how]()
    with pytest.raises(RuntimeError, match="no running event loop"):
        work.send(None)
    assert gone(lambda: None if engine._worker.waiting.idle else engine)


def test_a_request_is_read_by_event_loops_in_several_threads(engine):
    request = engine.submit("Hello.", options=GenerationOptions(max_tokens=100, temperature=3.0, seed=1))

    async def read() -> str:
        return "".join([piece.text async for piece in request])

    async def wait() -> str:
        return (await request).text

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda work: asyncio.run(work()), [read, wait, read, wait])) == {request.result().text}


def test_streams_in_cycles_are_ended_by_the_collector(endless):
    with Engine(endless) as engine:
        for _ in range(5):
            cycle: dict[str, Any] = {"stream": engine.stream("Hello.", options=LONG)}
            next(cycle["stream"])
            cycle["self"] = cycle
        del cycle
        gc.collect()
        assert gone(lambda: None if engine._worker.waiting.idle else engine)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("where", ["sink", "progress", "stop", "call", "loader"])
@pytest.mark.parametrize("how", ["close", "unload", "reload"])
def test_a_callback_may_close_or_switch_its_engine(where, how, endless):
    made: list[Engine] = []
    there, acted = threading.Event(), threading.Event()

    def act(*_: object) -> bool:
        if not acted.is_set():
            acted.set()
            {"close": made[0].close, "unload": made[0].unload, "reload": lambda: made[0].reload(endless)}[how]()
        return False

    def loader() -> Any:
        assert there.wait(20)
        if where == "loader":
            act()
        return load(endless)

    made.append(engine := Engine(loader))
    there.set()
    if where == "call":
        assert engine.call(act) is False
    elif where == "loader":
        with pytest.raises(EngineClosedError):
            engine.generate("Hello.", options=LONG)
    else:
        talk = engine.chat(options=LONG)
        callback: dict[str, Any] = {where: act}
        assert talk.submit("Hello.", **callback).result(30).finish_reason == "cancelled"
    if how == "close":
        with pytest.raises(EngineClosedError):
            engine.generate("Hello.")
        engine._worker.thread.join(60)
        assert not engine._worker.thread.is_alive()
    else:
        assert engine.generate("Hello.", options=SHORT, timeout=60)
    engine.close()


def test_many_threads_ask_while_others_switch_and_at_last_one_closes(engine, endless):
    expected = engine.generate("Hello.", options=SHORT)
    end = time.monotonic() + 3
    said: list[Any] = []

    def switch() -> None:
        while time.monotonic() < end:
            for work in (lambda: made.reload(endless), made.unload, made.clear_caches):
                work()
                time.sleep(0.1)

    def ask() -> None:
        try:
            while True:
                try:
                    said.append(made.generate("Hello.", options=SHORT, timeout=60))
                except EngineClosedError as error:
                    said.append(type(error))
                    if made.closed:
                        return
        except BaseException as error:
            said.append(error)

    with Engine(endless) as made:
        threads = [threading.Thread(target=work) for work in (switch, *[ask] * 12)]
        for thread in threads:
            thread.start()
        threads[0].join(60)
        assert made.generate("Hello.", options=SHORT, timeout=60) == expected
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and set(said) == {expected, EngineClosedError}
