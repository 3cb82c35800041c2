"""The cost of a server beside its engine, and what clients that ask at once gain: a table.

    python -m tools.compare.server [--model MODEL] [--clients 16] [--rounds 3]

The server and an engine of the same model answer questions of the same kind in turn, in one process: a text, and a
picture as a data URI, which both are given. No question is asked twice, so no cache answers. The overhead is that of
pairs, the client's share contained: the processor time is that of the whole process. Where other programs compute, it
and the least times say most. `--rounds 0` leaves out the clients that ask at once.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.client
import io
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from mlx_lfm2vl import Engine, GenerationOptions
from mlx_lfm2vl.server.models import ModelsSettings, name_of
from mlx_lfm2vl.server.run import Server, Settings


def pictures(side: int) -> Iterator[Image.Image]:
    """Pictures of noise, none twice."""
    rng = np.random.default_rng(1)
    while True:
        yield Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def question(text: str, picture: bytes | None) -> list[dict[str, Any]]:
    """The messages of a question in OpenAI's spelling, which an engine takes, too."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture is not None:
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


def body(model: str, messages: list[dict[str, Any]], tokens: int) -> bytes:
    """A question as a chat completion."""
    return json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}).encode()


def ask_server(connection: http.client.HTTPConnection, question: bytes) -> int:
    """The tokens of an answer."""
    connection.request("POST", "/v1/chat/completions", question, {"Content-Type": "application/json"})
    made = json.loads(connection.getresponse().read())
    return int(made["usage"]["completion_tokens"])


def ask_health(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/health")
    connection.getresponse().read()


def ask_anew(connection: http.client.HTTPConnection, question: bytes) -> int:
    """The tokens of an answer over a new connection: the server ends one that says nothing for some seconds."""
    connection.close()
    return ask_server(connection, question)


def ask_engine(engine: Engine, messages: list[dict[str, Any]], tokens: int) -> int:
    options = GenerationOptions(max_tokens=tokens, temperature=0)
    return len(engine.submit(messages, options=options).result().tokens)


Times = list[tuple[float, float]]  # seconds, and those of the processor


def points(times: Times) -> list[float]:
    """The least, the first quartile and the median of seconds, and the median of processor time."""
    seconds, processor = zip(*times, strict=True)
    quartile, median, _ = statistics.quantiles(seconds, n=4)
    return [min(seconds), quartile, median, statistics.median(processor)]


def overhead(beside: Times, alone: Times) -> list[float]:
    """The points of the differences in pairs; for the least time the difference of the least."""
    pairs = zip(beside, alone, strict=True)
    differences = [(one[0] - other[0], one[1] - other[1]) for one, other in pairs]
    least = min(seconds for seconds, _ in beside) - min(seconds for seconds, _ in alone)
    return [least, *points(differences)[1:]]


def timed(ask: Callable[[], object]) -> tuple[float, float]:
    """The seconds that it takes, and those of the processor, of all threads of the process."""
    started, used = time.perf_counter(), time.process_time()
    ask()
    return time.perf_counter() - started, time.process_time() - used


def in_turn(
    line: http.client.HTTPConnection, engine: Engine, model: str, questions: Iterator[Any], samples: int
) -> tuple[Times, Times]:
    """The times of both for answers of one token. Which comes first alternates."""
    beside: Times = []
    alone: Times = []
    for sample in range(samples):
        data, messages = body(model, next(questions), 1), next(questions)
        asked = [
            (beside, functools.partial(ask_server, line, data)),
            (alone, functools.partial(ask_engine, engine, messages, 1)),
        ]
        for times, ask in asked if sample % 2 else reversed(asked):
            times.append(timed(ask))
    return beside, alone


def shown(name: str, row: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{1e3 * seconds:.1f} ms' for seconds in row)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer that is timed as a whole")
    parser.add_argument("--side", type=int, default=128, help="of a picture, in pixels")
    parser.add_argument("--samples", type=int, default=40, help="answers of one token")
    args = parser.parse_args(arguments)
    server = Server(
        Settings((args.model,), port=0, model_settings=ModelsSettings(engine={"max_batch": args.clients})),
        lambda line: None,
    )
    threading.Thread(target=server.run, daemon=True).start()
    model = name_of(args.model)
    lines = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(args.clients)]
    texts = (question(f"What is {number}?", None) for number in itertools.count())
    made = (question("What is this?", png(picture)) for picture in pictures(args.side))
    print("| an answer of one token | least | quartile | median | processor |\n| --- | --- | --- | --- | --- |")
    with Engine(args.model, max_batch=args.clients) as engine:
        ask_server(lines[0], body(model, next(made), 2))
        ask_engine(engine, next(made), 2)
        for kind, questions in (("text", texts), ("picture", made)):
            beside, alone = in_turn(lines[0], engine, model, questions, args.samples)
            print(shown(f"{kind}: engine", points(alone)))
            print(shown(f"{kind}: server", points(beside)))
            print(shown(f"{kind}: overhead", overhead(beside, alone)), flush=True)
        health = [timed(lambda: ask_health(lines[0])) for _ in range(args.samples)]
        print(shown("`/health` over a kept-alive connection", points(health)), flush=True)
    serial: list[float] = []
    together: list[float] = []
    with ThreadPoolExecutor(args.clients) as pool:
        for _ in range(args.rounds):
            for rates, map_ in ((serial, map), (together, pool.map)):
                bodies = [body(model, next(made), args.tokens) for _ in lines]
                started = time.perf_counter()
                tokens = sum(map_(ask_anew, lines, bodies))
                rates.append(tokens / (time.perf_counter() - started))
    if args.rounds:
        print(f"\n| {args.clients} questions, answers of up to {args.tokens} tokens | tokens/s |\n| --- | --- |")
        print(f"| one after the other | {statistics.median(serial):.1f} |")
        print(f"| {args.clients} clients at once | {statistics.median(together):.1f} |")
        print(f"| ratio | {statistics.median(together) / statistics.median(serial):.2f} |")
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
