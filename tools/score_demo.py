"""Measures a model on the demo's held-out pictures with the shipped package (MLX), task by task.

    python tools/score_demo.py                       # the bundled demo, 500 pictures a task
    python tools/score_demo.py -n 50 --model FOLDER --json

Contract: the pictures come from the split that training never draws; decoding is greedy and the answer is the whole
text that the package returns. "wholly right" counts answers equal to the wanted one, to the letter; "facts" counts, for
descriptions, each object's size, colour, shape and place, found at the object's turn in the sentence. In `chat` every
question of a conversation is asked after the model's own earlier answers, and the rate is over all questions but the
first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import demo_tasks

from mlx_lfm2vl import GenerationOptions, generate, load

FIRST = 10_000_000  # seed of the first held-out sample
_TOLD = re.compile(r"((?:at|in) the [a-z ]+?) (?:there is )?an? (\w+) (\w+) (\w+)")


def facts(answer: str, sample: demo_tasks.Sample) -> tuple[int, int]:
    """(right, wanted) facts of a description, four an object; objects told beyond the real ones count as wanted too."""
    told = _TOLD.findall(answer.lower())
    wanted = [(demo_tasks.PLACES[o.place], o.size, o.colour, o.shape) for o in sample.things[0]]
    right = sum(a == b for one, other in zip(told, wanted, strict=False) for a, b in zip(one, other, strict=True))
    return right, 4 * max(len(told), len(wanted))


def score(model: Any, processor: Any, task: str, number: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts of one task: samples, questions scored, right ones, and facts where the task has them."""
    options = GenerationOptions(max_tokens=128)
    row: dict[str, Any] = {"task": task, "pictures": number, "questions": 0, "right": 0}
    for seed in range(FIRST, FIRST + number):
        sample = demo_tasks.make(task, "test", seed, size)
        messages: list[dict[str, Any]] = []
        for turn, (question, wanted) in enumerate(sample.turns if task == "chat" else sample.turns[:1]):
            pictures = [{"type": "image", "image": p} for p in sample.images] if turn == 0 else []
            messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
            answer = generate(model, processor, messages, options=options)
            messages.append({"role": "assistant", "content": answer})
            if task != "chat" or turn > 0:
                row["questions"] += 1
                row["right"] += answer == wanted
            if task == "describe":
                found, all_facts = facts(answer, sample)
                row["facts_right"] = row.get("facts_right", 0) + found
                row["facts"] = row.get("facts", 0) + all_facts
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table of percentages."""
    lines = ["| task | pictures | wholly right | facts |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        share = f"{100 * row['facts_right'] / row['facts']:.1f} %" if "facts" in row else ""
        lines.append(f"| {row['task']} | {row['pictures']} | {100 * row['right'] / row['questions']:.1f} % | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="folder or repository (default: the bundled demo)")
    parser.add_argument("-n", type=int, default=500, help="pictures a task")
    parser.add_argument(
        "--task", action="append", choices=sorted(demo_tasks.TASKS), help="repeatable; default: those the demo learnt"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a task instead of the table")
    args = parser.parse_args()
    model, processor = load(args.model)
    rows = []
    for task in args.task or demo_tasks.LEARNT:
        started = time.monotonic()
        rows.append(score(model, processor, task, args.n))
        rows[-1]["seconds"] = round(time.monotonic() - started, 1)
        if args.json:
            print(json.dumps(rows[-1]), flush=True)
    if not args.json:
        print(table(rows))


if __name__ == "__main__":
    main()
