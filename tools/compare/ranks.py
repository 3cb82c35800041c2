"""Rows a second that `batch` answers with two ranks, beside one process, each on a core of its own.

    python -m tools.compare.ranks [--model MODEL] [--rows N M] [--rounds R]

Prints a table: the seconds that M rows take longer than N, the median of the rounds, in turn, so that the start of a
process and its model's counts for nothing; and their ratio. Linux only (taskset).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[2] / "examples" / "boxes.png"


def seconds(folder: Path, model: str, rows: int, ranks: int) -> float:
    """The time of a whole run."""
    source, hostfile = folder / "rows.jsonl", folder / "ring.json"
    made = [{"image": str(PICTURE), "prompt": f"What is in picture {n}?"} for n in range(rows)]
    source.write_text("".join(json.dumps(row) + "\n" for row in made))
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(ranks)]
    hostfile.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
    for each in sockets:
        each.close()
    words = ["batch", source, "--model", model, "--max-tokens", "32", "--overwrite", "--output", folder / "out.jsonl"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    begun, processes = time.perf_counter(), []
    for rank in range(ranks):
        launched = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)} if ranks > 1 else {}
        command = ["taskset", "-c", str(rank), sys.executable, "-m", "mlx_lfm2vl", *map(str, words)]
        processes.append(subprocess.Popen(command, env=environment | launched, stderr=subprocess.DEVNULL))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"batch ended with {codes}")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, nargs=2, default=[20, 220])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    few, many = args.rows
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for ranks, taken in times.items():
                start = seconds(Path(folder), args.model, few, ranks)
                taken.append(seconds(Path(folder), args.model, many, ranks) - start)
    one, two = (statistics.median(taken) for taken in times.values())
    print("| processes | rows/s | beside one |\n| --- | --- | --- |")
    for ranks, median in ((1, one), (2, two)):
        print(f"| {ranks} | {(many - few) / median:.1f} | {one / median:.2f} |")


if __name__ == "__main__":
    main()
