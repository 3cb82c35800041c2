"""Runs every row of every table of this folder; `__init__.py` says how tables are made."""

import gc
import importlib
import os
import pkgutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import matrix

from .bench import Bench
from .row import Row


def tables() -> dict[str, list[Row]]:
    """The rows of each table, by its module's name."""
    modules = [importlib.import_module(f"matrix.{found.name}") for found in pkgutil.iter_modules(matrix.__path__)]
    return {module.__name__.removeprefix("matrix."): module.ROWS for module in modules if hasattr(module, "ROWS")}


TABLES = tables()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends what hangs: a fifo that is opened, a server that never answers."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def open_files(folder: Path) -> list[str]:
    """The files below `folder` that this process holds open (Linux only)."""
    links = Path("/proc/self/fd")
    found = []
    for link in links.iterdir() if links.is_dir() else ():
        try:
            target = os.readlink(link)
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


@pytest.mark.sampled(450)
@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{table}: {row.name}") for table, rows in TABLES.items() for row in rows]
)
def test_row(row, tmp_path, monkeypatch, capfd):
    bench = Bench(tmp_path, monkeypatch, capfd)
    try:
        with limited(row.seconds):
            row.outcome.check(lambda: row.act(bench), bench)
    finally:
        bench.close()
    if open_files(tmp_path):
        gc.collect()  # what only a cycle holds is not lost
        assert open_files(tmp_path) == []


def test_there_are_enough_rows_of_every_kind():
    assert {"pictures", "urls", "commands", "batches"} <= TABLES.keys()
    assert sum(map(len, TABLES.values())) >= 250


def test_names_are_unique_so_that_a_row_can_be_run_alone():
    for table, rows in TABLES.items():
        names = [row.name for row in rows]
        assert sorted(set(names)) == sorted(names), table
