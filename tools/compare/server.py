"""The cost of a server beside its engine, and what clients that ask at once gain: a table.

    python -m tools.compare.server [--model MODEL] [--clients 16] [--rounds 3]

The server and an engine of the same model answer the same questions about pictures, turn by turn, in one process; no
question is asked twice, so no cache answers. The processor time is that of the whole process, the client's too. Where
other programs compute, it and the least times say most.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
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


def body(model: str, picture: bytes, tokens: int) -> bytes:
    """A question as a chat completion."""
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
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


def ask_engine(engine: Engine, picture: bytes, tokens: int) -> int:
    options = GenerationOptions(max_tokens=tokens, temperature=0)
    answer = engine.submit("What is this?", picture, options=options).result()
    return len(answer.tokens)


def points(times: list[tuple[float, float]]) -> list[float]:
    """The least, the first quartile and the median of seconds, and the median of processor time."""
    seconds, processor = zip(*times, strict=True)
    quartile, median, _ = statistics.quantiles(seconds, n=4)
    return [min(seconds), quartile, median, statistics.median(processor)]


def timed(ask: Any) -> tuple[float, float]:
    """The seconds that it takes, and those of the processor, of all threads of the process."""
    started, used = time.perf_counter(), time.process_time()
    ask()
    return time.perf_counter() - started, time.process_time() - used


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
    made = pictures(args.side)
    with Engine(args.model, max_batch=args.clients) as engine:
        ask_server(lines[0], body(model, png(next(made)), 2))
        ask_engine(engine, png(next(made)), 2)
        beside: list[tuple[float, float]] = []
        alone: list[tuple[float, float]] = []
        for _ in range(args.samples):
            picture, other = body(model, png(next(made)), 1), png(next(made))
            beside.append(timed(lambda picture=picture: ask_server(lines[0], picture)))
            alone.append(timed(lambda other=other: ask_engine(engine, other, 1)))
        print("| an answer of one token | least | quartile | median | processor |\n| --- | --- | --- | --- | --- |")
        rows = {name: points(times) for name, times in (("engine", alone), ("server", beside))}
        rows["overhead"] = [one - other for one, other in zip(rows["server"], rows["engine"], strict=True)]
        rows["`/health` over a kept-alive connection"] = points(
            [timed(lambda: ask_health(lines[0])) for _ in range(args.samples)]
        )
        for name, row in rows.items():
            print(f"| {name} | {' | '.join(f'{1e3 * seconds:.1f} ms' for seconds in row)} |")
    serial: list[float] = []
    together: list[float] = []
    with ThreadPoolExecutor(args.clients) as pool:
        for _ in range(args.rounds):
            for rates, map_ in ((serial, map), (together, pool.map)):
                questions = [body(model, png(next(made)), args.tokens) for _ in lines]
                started = time.perf_counter()
                tokens = sum(map_(ask_anew, lines, questions))
                rates.append(tokens / (time.perf_counter() - started))
    print(f"\n| {args.clients} questions, answers of up to {args.tokens} tokens | tokens/s |\n| --- | --- |")
    print(f"| one after the other | {statistics.median(serial):.1f} |")
    print(f"| {args.clients} clients at once | {statistics.median(together):.1f} |")
    print(f"| ratio | {statistics.median(together) / statistics.median(serial):.2f} |")
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
