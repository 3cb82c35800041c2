"""How long after `Request.cancel` an engine is free again, or an answer ends, beside what a token takes.

    python -m tools.compare.cancel MODEL [--picture PICTURE] [--rounds N]

Prints a table in milliseconds: the median and the longest of the rounds. A question is cancelled at a moment drawn from
a seed, while its prompt of 1,500 words is run or its picture (a large one unless given) is encoded; then an answer
beside which that happens. For models whose answer to a greeting does not end soon, as with random weights.
"""

import argparse
import random
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_lfm2vl import Engine, GenerationOptions, Request, load

LARGE = Path(__file__).resolve().parents[2] / "examples" / "large.png"
LONG = GenerationOptions(max_tokens=100_000, temperature=0)


def cancel(request: Request, engine: Engine | None = None) -> float:
    """Seconds until the request has ended; with an engine, until that does other work."""
    begun = time.perf_counter()
    request.cancel()
    assert request.result().finish_reason == "cancelled"
    if engine is not None:
        engine.call(lambda *_: None)
    return time.perf_counter() - begun


def whole(engine: Engine, *question: Any) -> float:
    """Seconds from a question to its first token."""
    begun = time.perf_counter()
    engine.submit(*question, options=GenerationOptions(max_tokens=1)).result()
    return time.perf_counter() - begun


def row(what: str, times: list[float]) -> None:
    print(f"{what:<50} {1e3 * statistics.median(times):>7.1f} {1e3 * max(times):>8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, hub repository or demo")
    parser.add_argument("--picture", type=Path, default=LARGE)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    moments = random.Random(0)
    model, processor = load(args.model)
    print(f"{'milliseconds':<50} {'median':>7} {'longest':>8}")
    with Engine(lambda: (model, processor)) as engine:
        engine.warm_up()
        request = engine.submit("Hello.", options=LONG)
        tokens = []
        for number in range(args.rounds + 1):
            request.take(number)
            tokens.append(time.perf_counter())
        row("a token", [later - sooner for sooner, later in pairwise(tokens)])
        request.cancel()
        questions = {"a prompt": ("word " * 1500, None), "a picture": ("?", args.picture)}
        for what, question in questions.items():
            took = whole(engine, *question)
            for beside in (False, True):
                times = []
                for _ in range(args.rounds):
                    engine.clear_caches()
                    other = engine.submit("Hello.", options=LONG) if beside else None
                    if other is not None:
                        other.take(0)
                    request = engine.submit(*question, options=LONG)
                    time.sleep(took * moments.uniform(0.2, 0.8))
                    if other is not None:
                        times.append(cancel(other))
                        request.cancel()
                        request.result()
                    else:
                        times.append(cancel(request, engine))
                row(f"an answer beside {what}, told" if beside else f"{what}, until the engine is free", times)


if __name__ == "__main__":
    main()
