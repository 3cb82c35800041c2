"""Compares this package with mlx-vlm and transformers: the same model, pictures and greedy tokens, in turn.

    python -m tools.compare.peers                      # sets everything up in build/peers, measures, prints a table
    python -m tools.compare.peers --only 256x256 batch --rounds 1
    python -m tools.compare.peers --without-blas       # what pip alone installs; the small rows
    python -m tools.compare.peers --table              # only prints what was measured
    python -m tools.compare.peers --table --into docs/performance.md    # puts the tables into the page

A row is measured A B C A B C, each measurement in a process of its own that loads, warms up and repeats; medians of
the rounds count. Each is a line of WORK/results.jsonl, so that the same command goes on where it was stopped; `--again`
measures the rows anew. MLX gets OpenBLAS by LD_PRELOAD (Debian: apt install libopenblas0). Where a row asks for the
same tokens and they differ, or a process fails, that is said and the exit code is 1, but the other rows are measured.
Linux only. The rows are in rows.py.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .environments import ROOT, environment, has_openblas, python
from .rows import HF, OURS, ROWS, VLM, Row
from .table import put_in, render

WORKER, MATERIALS = ("-m", "tools.compare.peers.worker"), ("-m", "tools.compare.peers.materials")


class Failed(Exception):
    """A process failed, or its answer is not ours."""


def run(command: list[str], variables: dict[str, str], seconds: float) -> dict[str, Any]:
    """A process's "output", "clock" (seconds) and "peak" (highest resident bytes), or "timeout". Raises
    `Failed`."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, cwd=tempfile.gettempdir())
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            clock = time.perf_counter() - start
            if pid:
                break
            if clock > seconds:
                process.kill()
                process.wait()
                return {"timeout": seconds}
            time.sleep(0.002)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise Failed(f"{' '.join(command)}\n{text}")
    return {"output": text, "clock": clock, "peak": usage.ru_maxrss * 1024}


def measure(row: Row, side: str, interpreter: str, work: Path, blas: bool) -> dict[str, Any]:
    """{"result"} or {"timeout"} of one measurement."""
    task = row.task(side, str(work))
    if task["kind"] == "process":
        made = run([interpreter, *task["command"]], environment(side, blas, work), row.seconds)
        if "timeout" not in made:
            made = {"result": {"seconds": [made["clock"]], "peak": made["peak"], "text": made["output"]}}
        return made
    made = run([interpreter, *WORKER, side, json.dumps(task)], environment(side, blas, work), row.seconds)
    if "timeout" in made:
        return made
    line = next(line for line in reversed(made["output"].splitlines()) if line.startswith("RESULT "))
    return {"result": json.loads(line.removeprefix("RESULT ")) | {"peak": made["peak"]}}


def check_same(row: Row, lines: list[dict[str, Any]]) -> None:
    """Raises `Failed` if a side that must say the same does not."""
    said = {line["side"]: line["result"] for line in lines if line["row"] == row.name and "result" in line}
    for side in row.same:
        if side not in said or OURS not in said:
            continue
        ours, theirs = said[OURS], said[side]
        same = ours["text"].strip() in theirs["text"] if "text" in ours else ours["tokens"] == theirs["tokens"]
        if not same:
            raise Failed(f"{row.name}: {side} answers {theirs}\nbut {OURS} {ours}")


def set_up(work: Path, interpreters: dict[str, str]) -> None:
    """Checkpoints and pictures, where they are not there yet."""
    for kind, made, side in (
        ("checkpoint", "float32", HF),
        ("folders", "demo", OURS),
        ("pictures", "scene.png", HF),
    ):
        if not (work / made).exists():
            print(f"making {kind}", file=sys.stderr)
            subprocess.run(
                [interpreters[side], *MATERIALS, kind, str(work)], env=environment(side, True, work), check=True
            )


def machine() -> str:
    """The machine, and what its environment tells libraries about it."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "")
    told = sorted(
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "OMP_", "MKL_"))
    )
    return ", ".join([model, f"{os.cpu_count()} cores", f"{platform.system()} {platform.machine()}", *told])


def busy() -> int:
    """Processes that run now beside this one, over all cores."""
    samples = []
    for _ in range(5):
        samples.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1)
        time.sleep(0.05)
    return sorted(samples)[len(samples) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.compare.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peers", help="folder (default: build/peers)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--sides", nargs="+", choices=(OURS, VLM, HF), default=[OURS, VLM, HF])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-blas", action="store_true", help="MLX as pip installs it; the small rows")
    parser.add_argument("--again", action="store_true", help="forget what was measured of these rows")
    parser.add_argument("--table", action="store_true", help="print the tables, measure nothing")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="put the tables into a page, between its marks")
    parser.add_argument("--python", metavar="PYTHON", help="an interpreter with this package's dependencies")
    parser.add_argument("--mlx-vlm", metavar="PYTHON", help="an interpreter with mlx-vlm")
    parser.add_argument("--transformers", metavar="PYTHON", help="an interpreter with torch and transformers")
    args = parser.parse_args()
    work, blas = args.work.resolve(), not args.without_blas
    work.mkdir(parents=True, exist_ok=True)
    file = work / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if args.table:
        return show(lines, args.into)
    rows = [row for row in ROWS if row.name in (args.only or names) and (blas or row.small or args.only)]
    given = {OURS: args.python, VLM: args.mlx_vlm, HF: args.transformers}
    interpreters = {side: python(side, given[side], work) for side in given}
    for side in (OURS, VLM):
        if has_openblas(side, interpreters[side], environment(side, blas, work)) != blas:
            raise SystemExit(
                f"{side}: OpenBLAS is not loaded (Debian: apt install libopenblas0)"
                if blas
                else f"{side}: has OpenBLAS"
            )
    set_up(work, interpreters)
    if args.again:
        lines = [line for line in lines if line["blas"] != blas or line["row"] not in {row.name for row in rows}]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    versions: dict[str, Any] = {}
    for side, interpreter in interpreters.items():
        made = run([interpreter, *WORKER, side, '{"kind": "versions"}'], environment(side, blas, work), 60)
        versions[side] = json.loads(made["output"].removeprefix("RESULT "))
    failed: list[str] = []
    for row in rows:
        start = time.perf_counter()
        for turn in range(min(args.rounds, row.rounds)):
            for side in row.sides:
                there = (line["row"] == row.name and line["side"] == side and line["blas"] == blas for line in lines)
                if side not in args.sides or sum(there) > turn:
                    continue
                conditions = {
                    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "machine": machine(),
                    "busy": busy(),
                    "versions": versions[side],
                }
                try:
                    made = measure(row, side, interpreters[side], work, blas)
                    line = {"row": row.name, "side": side, "blas": blas, **conditions, **made}
                    check_same(row, [*(line for line in lines if line["blas"] == blas), line])
                except Failed as error:
                    failed.append(f"{row.name} {side}")
                    print(error, file=sys.stderr, flush=True)
                    continue
                lines.append(line)
                with file.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(f"{row.name:12} {side:12} {said(row, line)}", file=sys.stderr, flush=True)
        print(f"{row.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    show(lines, args.into)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def show(lines: list[dict[str, Any]], page: Path | None) -> None:
    """Prints the tables, or puts them into a page."""
    tables = {blas: render(lines, blas) for blas in (True, False)}
    if page is None:
        print("\n".join(tables.values()))
    else:
        page.write_text(put_in(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


def said(row: Row, line: dict[str, Any]) -> str:
    if "timeout" in line:
        return f"none in {line['timeout']:.0f} s"
    return ", ".join(f"{number.title} {number.read(line['result']):.3f} {number.unit}" for number in row.numbers)


if __name__ == "__main__":
    main()
