"""Runs an entrance many times: a parent that watches, children that execute. See `__init__.py`."""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from peak import peak_memory

from .entrance import Entrance

ROOT = Path(__file__).parent.parent.parent
ADDRESS_SPACE = 4 * 2**30
HANG_SECONDS = 60
STARTING = 2**64 - 1  # in place of a number, while a child imports what it needs


def entrance(name: str) -> Entrance:
    """The entrance of that module, of this package or (a name with a dot) of another."""
    found: Entrance = importlib.import_module(name if "." in name else f"fuzz.{name}").ENTRANCE
    return found


def execute(chosen: Entrance, number: int) -> tuple[str, str]:
    """(what came of it, its traceback if it is a finding). "accepted" and "refused" are as it should be."""
    seed, data = chosen.input(number)
    before = peak_memory()
    started = time.process_time()
    try:
        chosen.run(data)
        outcome, trace = "accepted", ""
    except chosen.allowed:
        outcome, trace = "refused", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, trace = type(error).__name__, traceback.format_exc()
    if (took := time.process_time() - started) > chosen.seconds:
        outcome, trace = "slow", f"{took:.1f} s of processor time"
    if (grown := (peak_memory() - before) / 2**20) > chosen.megabytes:
        outcome, trace = "memory", f"{grown:.0f} MB more"
    return outcome, trace and f"seed {seed}\n{trace}"


def child(name: str, first: int, last: int, progress: str) -> None:
    """Executes a range, and writes the number that is on into `progress`, so that its parent knows where it stood."""
    chosen = entrance(name)
    chosen.seeds()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    counts: Counter[str] = Counter()
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        for number in range(first, last):
            shared[:] = struct.pack("<Q", number)
            outcome, trace = execute(chosen, number)
            counts[outcome] += 1
            if trace:
                print(json.dumps({"number": number, "outcome": outcome, "trace": trace}), flush=True)
    print(json.dumps({"counts": counts}), flush=True)


def campaign(name: str, executions: int, folder: Path, chunk: int = 2000, hang: float = HANG_SECONDS) -> dict[str, Any]:
    """Runs up to `executions` in all, from where an earlier campaign ended, and returns its state. One that shows no
    progress for `hang` seconds is killed. Of a chunk that ended so, what came before counts as "uncounted"."""
    folder.mkdir(parents=True, exist_ok=True)
    file, progress = folder / f"{name}.json", folder / f"{name}.progress"
    state: dict[str, Any] = {"done": 0, "seconds": 0.0, "counts": {}, "findings": []}
    if file.exists():
        state = json.loads(file.read_text())
    while state["done"] < executions:
        first, last = state["done"], min(state["done"] + chunk, executions)
        progress.write_bytes(struct.pack("<Q", STARTING))
        started = time.monotonic()
        made, stopped = _watched(name, first, last, progress, hang)
        for line in made:
            if "counts" in line:
                state["counts"] = dict(Counter(state["counts"]) + Counter(line["counts"]))
            else:
                state["findings"].append(line)
        state["done"] = last
        if stopped is not None:
            number = struct.unpack("<Q", progress.read_bytes())[0]
            if number == STARTING:
                raise RuntimeError(f"{name}: its child ended before the first execution ({stopped})")
            state["findings"].append({"number": number, "outcome": stopped, "trace": ""})
            state["counts"] = dict(Counter(state["counts"]) + Counter({stopped: 1, "uncounted": number - first}))
            state["done"] = number + 1
        state["seconds"] = round(state["seconds"] + time.monotonic() - started, 1)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(state, indent=1))
        new.replace(file)
    return state


def _watched(name: str, first: int, last: int, progress: Path, hang: float) -> tuple[list[dict], str | None]:
    """What a child wrote, and how it ended if not in order."""
    words = [sys.executable, "-m", "fuzz", name, "--child", str(first), str(last), str(progress)]
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (
        open(progress.with_suffix(".out"), "w+") as out,
        subprocess.Popen(words, stdout=out, env={**os.environ, "PYTHONPATH": path}) as running,
    ):
        at, since, stopped = -1, time.monotonic(), None
        while running.poll() is None:
            time.sleep(0.1)
            now = struct.unpack("<Q", progress.read_bytes())[0]
            if now != at:
                at, since = now, time.monotonic()
            elif time.monotonic() - since > (HANG_SECONDS if now == STARTING else hang):
                running.kill()
                running.wait()
                stopped = "hang"
        if running.returncode and stopped is None:
            code = running.returncode
            stopped = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        out.seek(0)
        return [json.loads(line) for line in out.read().splitlines(keepends=True) if line.endswith("\n")], stopped


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("entrance")
    parser.add_argument("--executions", type=int, default=100_000, help="in all, with those of earlier runs")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="state and findings")
    parser.add_argument("--only", type=int, help="one execution, with its traceback")
    parser.add_argument("--save", type=Path, help="with --only: write its input to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.entrance, int(args.child[0]), int(args.child[1]), args.child[2])
        return 0
    if args.only is not None:
        seed, data = entrance(args.entrance).input(args.only)
        if args.save:
            args.save.write_bytes(data)
        print(f"seed {seed}, {len(data)} bytes")
        print(*execute(entrance(args.entrance), args.only), sep="\n")
        return 0
    state = campaign(args.entrance, args.executions, args.folder)
    print(json.dumps(state, indent=1))
    return int(bool(state["findings"]))


if __name__ == "__main__":
    sys.exit(main())
