"""`batch` under `mlx.launch`: the output of one process, whatever becomes of the ranks."""

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from launched import ended, free_ports, start_ranks
from test_cli import MODEL, ROOT, cli  # noqa: F401

from mlx_lfm2vl.cli import main
from mlx_lfm2vl.cli.joining import said_late
from mlx_lfm2vl.cli.output import AHEAD, InOrder, Output
from mlx_lfm2vl.cli.ranks import Ranks, dealt_by_cost
from mlx_lfm2vl.cli.rows import Row
from mlx_lfm2vl.distributed.group import launch, launched_group
from mlx_lfm2vl.distributed.links import SILENCE, Came, Link, greeted, silence
from mlx_lfm2vl.errors import DistributedError

PICTURES = GOLDEN / "pictures"


def inputs(folder: Path, count: int = 6) -> Path:
    """`count` rows of several costs and four more; two are wrong."""
    rows: list[object] = [{"id": n, "prompt": f"Count to {n}." * (1 + n % 3)} for n in range(count)]
    rows[1:1] = [{"id": "p", "image": str(PICTURES / "large.png")}, {"id": "no", "image": "none.png"}]
    rows[5:5] = ["{", {"id": "q", "image": str(PICTURES / "small.png"), "prompt": "What?"}]
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def words(rows: Path, output: Path, *more: object, tokens: int = 4) -> tuple[object, ...]:
    return ("batch", rows, "--model", MODEL, "--max-tokens", tokens, "--batch-size", 2, "--output", output, *more)


def until(true: Callable[[], bool], ranks: list[subprocess.Popen[str]]) -> None:
    limit = time.monotonic() + 600
    while not true():
        assert time.monotonic() < limit and None in [rank.poll() for rank in ranks], ended(ranks, 1)
        time.sleep(0.01)


def lines(*paths: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in paths if path.exists())


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("out.jsonl*"))


def test_ranks_write_the_output_of_one_process(cli, tmp_path):  # noqa: F811
    rows, output = inputs(tmp_path), tmp_path / "out.jsonl"
    assert cli(*words(rows, tmp_path / "alone.jsonl"))[0] == 1
    whole = (tmp_path / "alone.jsonl").read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + b'{"id": 2, ')
    (code, out, err), *others = ended(start_ranks(tmp_path, 4, *words(rows, output)))
    assert (code, out) == (1, "") and "10 rows, 2 with an error" in err, err
    assert [end for end in others if end != (0, "", "")] == []
    assert output.read_bytes() == whole and left(tmp_path) == ["out.jsonl"]


@pytest.mark.soak
def test_ranks_do_failed_rows_again_in_their_places(cli, tmp_path):  # noqa: F811
    rows, output = inputs(tmp_path), tmp_path / "out.jsonl"
    assert cli(*words(rows, output))[0] == 1
    shutil.copy(PICTURES / "small.png", tmp_path / "none.png")
    shutil.copy(output, tmp_path / "alone.jsonl")
    assert cli(*words(rows, tmp_path / "alone.jsonl", "--retry-failed"))[0] == 1
    (code, _, err), *_ = ended(start_ranks(tmp_path, 2, *words(rows, output, "--retry-failed")))
    assert code == 1 and "10 rows, 1 with an error" in err, err
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes() and left(tmp_path) == ["out.jsonl"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_finish_and_the_same_command_completes(cli, tmp_path, victim):  # noqa: F811
    """As `mlx.launch` does, the others get SIGTERM once one is killed."""
    rows, output = inputs(tmp_path, 60), tmp_path / "out.jsonl"
    ranks = start_ranks(tmp_path, 2, *words(rows, output, tokens=60))
    until(lambda: lines(output, tmp_path / "out.jsonl.ahead") >= 2, ranks)
    ranks[victim].kill()
    ranks[1 - victim].send_signal(signal.SIGTERM)
    code, _, err = ended(ranks)[1 - victim]
    assert code == 2 and "the same command" in err, err
    assert lines(*tmp_path.glob("out.jsonl*")) >= 25
    code, _, err = cli(*words(rows, output, tokens=60))
    assert code == 1 and "64 rows, 2 with an error" in err, err
    assert cli(*words(rows, tmp_path / "alone.jsonl", tokens=60))[0] == 1
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes() and left(tmp_path) == ["out.jsonl"]


@pytest.mark.soak
def test_a_silent_rank_counts_as_gone(tmp_path):
    rows, output = inputs(tmp_path, 300), tmp_path / "out.jsonl"
    environment = {"MLX_LFM2VL_RANK_SILENCE": "3"}
    ranks = start_ranks(tmp_path, 2, *words(rows, output, tokens=20), environment=environment)
    until(lambda: lines(output, tmp_path / "out.jsonl.ahead") >= 2, ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    (code, _, err), *_ = ended(ranks[:1])
    ranks[1].kill()
    ended(ranks[1:])
    assert code == 2 and "rank 1 did not finish; the same command answers them" in err


def test_ranks_with_other_rows_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(json.dumps({"prompt": f"Why {name}?"}) + "\n")
    common = words(Path("rows.jsonl"), tmp_path / "out.jsonl")
    code, _, err = ended(start_ranks(tmp_path, 2, *common, folders=[tmp_path / "a", tmp_path / "b"]))[0]
    assert code == 2 and "rank 1 has other rows or options than rank 0" in err


def test_mlx_launch_starts_the_ranks(cli, tmp_path):  # noqa: F811
    rows, output = inputs(tmp_path), tmp_path / "out.jsonl"
    launch = [Path(sys.executable).parent / "mlx.launch", "-n", 2, "--backend", "ring", "--starting-port"]
    command = [*launch, free_ports(1)[0], "--", sys.executable, "-m", "mlx_lfm2vl", *words(rows, output)]
    run = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run(list(map(str, command)), **run)  # type: ignore[call-overload]
    assert "10 rows, 2 with an error" in done.stderr, done.stderr
    assert cli(*words(rows, tmp_path / "alone.jsonl"))[0] == 1
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.parametrize("text", ["", "\n"])
def test_one_rank_is_a_process_alone(monkeypatch, tmp_path, text):
    """`mlx.launch -n 1` gives a hostfile without hosts, which MLX does not read."""
    (tmp_path / "hosts").write_text(text)
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert launched_group() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "MLX_HOSTFILE cannot be read .No such file or directory"),
        (b"\xff\xfe\x00", "MLX_HOSTFILE cannot be read .it is not text"),
        (b"[[", "MLX_HOSTFILE is not JSON"),
        *((text, "MLX_HOSTFILE is no list of ranks like") for text in (b"{}", b"[[], []]", b'["10.0.0.1:80"]')),
        (b'[{"ssh": "a", "ips": ["10.0.0.1"]}]', "MLX_HOSTFILE is no list of ranks like"),
        (b'[["10.0.0.1"]]', "MLX_HOSTFILE is no list of ranks like"),
        (b'[["127.0.0.1:1"], ["127.0.0.1:2"]]', "MLX_RANK is '2', but .* has 2 ranks"),
    ],
)
def test_a_hostfile_of_ranks_that_is_none_is_named(monkeypatch, tmp_path, text, said, capsys):
    """With exit code 2 and one line."""
    if text is not None:
        (tmp_path / "hosts").write_bytes(text)
    monkeypatch.setenv("MLX_RANK", "2")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    with pytest.raises(DistributedError, match=said):
        launched_group()
    assert main(["generate", "--model", "demo", "--prompt", "Why?"]) == 2
    out, err = capsys.readouterr()
    assert not out and re.search(said, " ".join(err.split())) and "mlx.launch" in err


def test_an_address_that_is_not_this_machines_is_named(monkeypatch, tmp_path):
    (tmp_path / "hosts").write_text('[["192.0.2.1:5000"], ["192.0.2.2:5000"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    with pytest.raises(DistributedError, match=r"the ranks do not reach each other .*see the hostfile"):
        launched_group()


def test_a_long_wait_is_said_and_a_short_one_is_not(capfd):
    line, limit, err = "rank 0 waits", time.monotonic() + 60, ""
    with said_late(line, 0.05):
        while not err:
            assert time.monotonic() < limit
            err = capfd.readouterr().err
            time.sleep(0.01)
    with said_late("rank 1 waits", 600):
        pass
    assert err + capfd.readouterr().err == f"mlx-lfm2vl: {line}\n"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"MLX_HOSTFILE": "ring.json"},
            "rank 1 waits for the other ranks of the back end ring, at 10.0.0.1:5000, ",
        ),
        ({"MLX_JACCL_COORDINATOR": "10.0.0.1:80"}, "back end jaccl, and the coordinator at 10.0.0.1:80"),
        ({"NCCL_HOST_IP": "10.0.0.1"}, "the other ranks of the back end nccl;"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "the other ranks of the back end mpi;"),
    ],
)
def test_a_rank_says_for_whom_it_waits(monkeypatch, tmp_path, environment, said):
    (tmp_path / "ring.json").write_text(json.dumps([[f"10.0.0.{host}:5000"] for host in (1, 2, 3)]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_RANK", "1")
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    launched = launch()
    assert launched is not None and said in launched.waits_for and "10.0.0.2" not in launched.waits_for


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_wait_for_a_rank_that_never_comes_can_be_ended(tmp_path, rank):
    """One end of MLX's ring accepts a connection, the other one makes it."""
    ranks = start_ranks(tmp_path, 2, "generate", "--model", "demo", "--prompt", "Why?")
    ranks[1 - rank].kill()  # Python has not begun
    try:
        stderr = ranks[rank].stderr
        assert stderr is not None and f"rank {rank} waits for the other ranks" in stderr.readline()
        ranks[rank].send_signal(signal.SIGINT)
        assert ranks[rank].wait(60) == -signal.SIGINT
    finally:
        ended(ranks)


@pytest.mark.parametrize("more", [["-"], ["rows.jsonl", "--prompt", "-"], ["rows.jsonl", "--prompt-file", "-"]])
def test_what_is_on_stdin_is_refused_in_ranks(tmp_path, more):
    (tmp_path / "rows.jsonl").write_text('{"image": "small.png"}\n')
    for code, out, err in ended(
        start_ranks(tmp_path, 2, "batch", *more, "--output", "out.jsonl", stdin=subprocess.PIPE)
    ):
        assert (code, out) == (2, "") and "mlx.launch does not end" in err, err


@given(st.dictionaries(st.integers(1, 300), st.integers(1, 5000), max_size=60), st.integers(1, 8))
def test_dealing_gives_every_row_once_and_even_loads(costs, ranks):
    dealt = dealt_by_cost(costs, ranks)
    assert len(dealt) == ranks and all(numbers == sorted(numbers) for numbers in dealt)
    assert sorted(number for numbers in dealt for number in numbers) == sorted(costs)
    loads = [sum(map(costs.__getitem__, numbers)) for numbers in dealt]
    assert max(loads) - min(loads) <= max(costs.values(), default=0)


def test_a_wait_for_ranks_that_load_can_be_stopped(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        near, (far, _) = socket.create_connection(server.getsockname()), server.accept()
    came = Came()
    link = Link(1, near, came)
    asked = iter([False, True])  # Ctrl-C comes at the second look
    path = str(tmp_path / "out.jsonl")
    with near, far, Output(path, False, "s") as output, InOrder(output, [1, 2], lambda: []) as order:
        dealt = Ranks({1: link}, 2, came, "check").deal(
            order, "", "s", lambda numbers: dict.fromkeys(numbers, 1), lambda: next(asked)
        )
        assert dealt == [] and order.missing == [1, 2]
        link.close()


def test_lines_that_came_early_outlast_an_output_of_other_rows(tmp_path):
    path = str(tmp_path / "out.jsonl.retry")
    mine, other = (Row({"id": n, "prompt": "Hi"}, error="wrong", number=1) for n in (1, 2))
    for name, row in ((path, other), (path + AHEAD, mine)):
        with Output(name, False, "s") as made:
            made.write(row, None)
    with Output.left(path, False, "s", lambda: [mine]) as made, made.beside(AHEAD, lambda: [mine]) as ahead:
        assert (made.failed, ahead.failed) == ([], [1])


def test_a_rank_with_another_input_writes_no_row(tmp_path):
    """What it kept of an earlier run comes behind its check."""
    came, path = Came(), str(tmp_path / "out.jsonl")
    with Output(path, False, "s") as output, InOrder(output, [1, 2], lambda: []) as order:
        ranks = Ranks({}, 2, came, "check")
        for said in ({"check": "other"}, {"line": [1, "{}\n", False]}, {"ready": True}):
            came.put((1, said))
        with pytest.raises(DistributedError, match="rank 1 has other rows or options than rank 0"):
            ranks.take(order)
        assert order.missing == [1, 2]


@pytest.mark.parametrize("seconds", ["", "a minute", "0", "nan", "-5", "1e9"])
def test_a_silence_that_is_no_time_is_named(monkeypatch, seconds):
    monkeypatch.setenv(SILENCE, seconds)
    with pytest.raises(
        DistributedError, match=f"{SILENCE} is '{seconds}', expected a number of seconds from 1 to 86400"
    ):
        silence()


@pytest.mark.parametrize(
    ("said", "rank"),
    [
        (b'["secret", 3]\nmore', 3),
        *((line, None) for line in (b"1\n", b"{}\n", b"[1, 2]\n", b'["secret"]\n', b'["\xc3\xa4", 1]\n', b"\xff\n")),
        *(
            (line, None)
            for line in (b'["other", 3]\n', b'["secret", "3"]\n', b"[" * 999 + b"\n", b"GET / HTTP/1.1\r\n")
        ),
        (b'["secret", 3]', None),  # and no more
    ],
)
def test_only_who_knows_the_token_is_a_rank(said, rank):
    near, far = socket.socketpair()
    with near, far:
        near.sendall(said)
        assert greeted(far, "secret", time.monotonic() + (0.2 if rank is None else 60)) == rank
        if rank is not None:
            assert far.recv(100) == b"more"


@pytest.mark.soak
@pytest.mark.parametrize("moment", range(20))
def test_a_rank_that_is_killed_at_any_moment_loses_nothing(cli, tmp_path, moment):  # noqa: F811
    """While it starts, or with some rows answered. As `mlx.launch` does, the others get SIGTERM."""
    rows, output, chance = inputs(tmp_path, 60), tmp_path / "out.jsonl", random.Random(moment)
    ranks = start_ranks(tmp_path, 3, *words(rows, output, tokens=20))
    if moment % 4 == 0:
        time.sleep(chance.uniform(0, 8))
    else:
        most = chance.randrange(60)
        until(lambda: lines(output, tmp_path / "out.jsonl.ahead") >= most, ranks)
    victim = chance.randrange(3)
    ranks[victim].kill()
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    ended(ranks)
    (code, _, err), *_ = ended(start_ranks(tmp_path, chance.choice((2, 3)), *words(rows, output, tokens=20)))
    assert code == 1, err
    assert cli(*words(rows, tmp_path / "alone.jsonl", tokens=20))[0] == 1
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes() and left(tmp_path) == ["out.jsonl"]
