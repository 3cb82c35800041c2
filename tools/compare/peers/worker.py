"""One measurement of one side in a process of its own; prints JSON.

    python -m tools.compare.peers.worker SIDE TASK      # TASK is JSON

Tasks: {"kind": "answer", "folder", "picture" (or null), "prompt", "tokens", "warm": [pictures], "repeats"},
{"kind": "batch", "folder", "pictures", "prompt", "tokens", "warm", "repeats"},
{"kind": "preprocess", "folder", "picture", "prompt", "repeats"}, {"kind": "import", "program"},
{"kind": "versions"}. Times are in seconds.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

HEAVY = ("mlx_lm", "transformers", "torch")


def main() -> None:
    side, task = sys.argv[1], json.loads(sys.argv[2])
    print("RESULT " + json.dumps(measured(side, task)))


def measured(side: str, task: dict[str, Any]) -> dict[str, Any]:
    if task["kind"] == "import":
        start = time.perf_counter()
        exec(task["program"], {})
        return {"seconds": [time.perf_counter() - start], "imported": [name for name in HEAVY if name in sys.modules]}
    from .sides import PACKAGES, SIDES

    if task["kind"] == "versions":
        return {package: version(package) for package in PACKAGES[side]}
    start = time.perf_counter()
    peer: Any = SIDES[side](task["folder"])
    result: dict[str, Any] = {"load": time.perf_counter() - start}
    prompt, repeats = task["prompt"], task["repeats"]
    if task["kind"] == "preprocess":
        peer.preprocess(task["picture"], prompt)
        clocked = [_clocked(peer.preprocess, task["picture"], prompt) for _ in range(repeats)]
        return result | {"seconds": [seconds for seconds, _ in clocked], "prompt_tokens": clocked[0][1]}
    for picture in task["warm"]:
        peer.answer(picture, prompt, 2)
    if task["kind"] == "batch":
        clocked = [_clocked(peer.answers, task["pictures"], prompt, task["tokens"]) for _ in range(repeats)]
        return result | {"seconds": [seconds for seconds, _ in clocked], "tokens": clocked[0][1]}
    answers = [peer.answer(task["picture"], prompt, task["tokens"]) for _ in range(repeats)]
    return result | {
        "first": [answer.first for answer in answers],
        "speed": [(len(answer.tokens) - 1) / answer.rest for answer in answers if len(answer.tokens) > 1],
        "tokens": answers[0].tokens,
        "imported": [name for name in HEAVY if name in sys.modules],
    }


def _clocked(work: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work(*arguments)
    return time.perf_counter() - start, made


if __name__ == "__main__":
    main()
