"""What waits for the engine: a bounded queue, and pictures that are read by other threads."""

import asyncio
import base64
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import GOLDEN, endless_model, picture
from engines import FOREVER, SHORT, alone, occupied

from mlx_lfm2vl import SourcePolicy, load
from mlx_lfm2vl.engine import queue as waiting
from mlx_lfm2vl.engine.engine import Engine
from mlx_lfm2vl.engine.queue import READERS
from mlx_lfm2vl.errors import QueueFullError
from mlx_lfm2vl.processing.load_image import png_bytes


@pytest.fixture
def slow_server():
    """The address of a picture that does not come until it is let."""
    release = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            release.wait(60)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png"
    release.set()
    server.shutdown()


def named_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"mlx-lfm2vl {name}"]


def test_where_no_thread_can_be_had_the_engine_reads_by_itself(engine, monkeypatch):
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if "reader" in thread.name:
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", start)
        for _ in range(waiting.MOST_READERS + 1):
            request = engine.submit("Question.", picture("small"), options=SHORT)
            assert asyncio.run(request.wait_until_read())
            assert request.result(60).tokens == alone("Question.", "small", 6)
    assert engine.submit("Question.", options=SHORT).result(60).tokens == alone("Question.", None, 6)


def test_a_full_queue_says_so():
    with Engine(endless_model, max_queue=2) as engine:
        _, release = occupied(engine)
        waiting = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            engine.submit("Hello.")
        threading.Timer(0.2, release.set).start()
        late = engine.submit("Hello.", options=SHORT, wait=30)
        assert len({request.result(60).tokens for request in [*waiting, late]}) == 1


def test_a_slow_picture_holds_up_its_own_question_only(engine, slow_path):
    slow = engine.submit("What is this?", slow_path, options=SHORT)
    talk = engine.chat(options=SHORT)
    slow_turn = talk.submit("What is this?", slow_path)
    assert slow_path.asked.wait(60)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
    assert engine.submit("What is this?", picture("portrait"), options=SHORT).result(60).tokens
    assert engine.chat(options=SHORT).ask("Hello.")
    assert not slow.done and not slow_turn.done
    slow_path.release.set()
    assert slow.result(60).tokens == slow_turn.result(60).tokens == alone("What is this?", "small", 6)


def test_slow_addresses_hold_up_other_addresses_at_most(slow_server):
    def private():
        return load(GOLDEN / "gen2", source_policy=SourcePolicy(allow_private_addresses=True))

    item = {"type": "image_url", "image_url": {"url": slow_server}}
    with Engine(private) as engine:
        slow = [engine.submit("What is this?", slow_server) for _ in range(READERS)]
        slow += [engine.submit([{"role": "user", "content": [item]}]) for _ in range(READERS)]
        talk = engine.chat(options=SHORT)
        turns = [
            talk.submit("What is this?", slow_server),
            *(talk.submit("And now?", picture("small")) for _ in "12345678"),
        ]
        for quick in (None, picture("portrait")):
            assert engine.submit("Hello.", quick, options=SHORT).result(60).finish_reason != "cancelled"
        late = [engine.submit("What is this?", slow_server, deadline=0.1) for _ in range(READERS)]
        assert [request.result(60).finish_reason for request in late] == ["deadline"] * READERS
        for request in slow:
            request.cancel()
        data = "data:image/png;base64," + base64.b64encode(png_bytes(picture("small"))).decode()
        assert engine.submit("What is this?", data, options=SHORT).result(60).finish_reason != "cancelled"
        assert not any(request.done for request in turns)


def test_questions_join_before_work_that_waits_but_not_for_long(engine, monkeypatch):
    running = engine.submit("Hello.", options=FOREVER)
    running.take(0, 60)
    called = threading.Thread(target=engine.call, args=(lambda *_: None,))
    called.start()
    while len(engine._worker.waiting._jobs) < 1:
        time.sleep(0.01)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
    assert called.is_alive() and not running.done
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    after = engine.submit("Hello.", options=SHORT)
    with pytest.raises(TimeoutError):
        after.result(0.5)
    running.cancel()
    called.join(60)
    assert after.result(60).tokens == alone("Hello.", None, 6)


def test_waiting_for_a_place_ends_at_the_deadline(engine):
    with Engine(endless_model, max_queue=1) as small:
        running = small.submit("Hello.", options=FOREVER, wait=60)
        running.take(0, 60)
        caller = threading.Thread(target=lambda: small.call(lambda *_: None))
        caller.start()
        while len(small._worker.waiting._jobs) < 1:
            time.sleep(0.01)
        with pytest.raises(QueueFullError):
            small.submit("Hello.", deadline=0.2, wait=600)
        assert not running.done
        running.cancel()
        caller.join(60)


def test_no_more_is_read_ahead_than_is_soon_needed(tmp_path):
    """Pixels take room: of all pictures that wait only some are opened, and nothing that reads is left behind."""
    picture("small").save(tmp_path / "small.png")
    opened = []

    class Noted(os.PathLike):
        seen = False

        def __fspath__(self):
            if not self.seen:
                opened.append(threading.current_thread().name)
            self.seen = True
            return str(tmp_path / "small.png")

    with Engine(endless_model, max_batch=2) as engine:
        _, release = occupied(engine)
        requests = [engine.submit("What is this?", Noted(), options=SHORT) for _ in range(20)]
        end = time.monotonic() + 30
        while (len(opened) < READERS or named_threads("reader")) and time.monotonic() < end:
            time.sleep(0.01)
        assert opened == ["mlx-lfm2vl reader"] * READERS
        release.set()
        assert {request.result(60).tokens for request in requests} == {alone("What is this?", "small", 6)}
        assert opened == ["mlx-lfm2vl reader"] * 20
        while named_threads("reader") and time.monotonic() < end:
            time.sleep(0.01)
        assert not named_threads("reader")


def test_waiting_for_a_place_does_not_block_the_event_loop():
    with Engine(endless_model, max_queue=1) as engine:
        _, release = occupied(engine)
        waiting = engine.submit("Hello.", options=SHORT)

        async def ask(wait: float) -> tuple[int, ...]:
            pieces = [piece async for piece in engine.astream("Hello.", options=SHORT, wait=wait)]
            return tuple(token for piece in pieces for token in piece.tokens)

        async def main():
            with pytest.raises(QueueFullError):
                await ask(0.1)
            asking = asyncio.create_task(ask(30))
            await asyncio.sleep(0.1)
            release.set()  # from the event loop, which could not if it were blocked
            return await asking

        assert asyncio.run(main()) == alone("Hello.", None, 6) == waiting.result(60).tokens


def test_a_submit_that_is_interrupted_leaves_no_request(engine, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._worker.waiting, "_news", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.submit("Hello.", options=FOREVER)
    assert engine.queue_length == 0
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
