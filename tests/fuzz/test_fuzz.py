"""Every entrance refuses or accepts what comes: few changed files here, up to 100,000 in `make soak`."""

import pkgutil

import pytest

import fuzz
from fuzz.__main__ import campaign, entrance, execute

NAMES = [
    found.name
    for found in pkgutil.iter_modules(fuzz.__path__)
    if found.name not in ("__main__", "entrance", "folders", "test_fuzz")
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_accepted_and_changed_ones_too_or_refused(name):
    chosen = entrance(name)
    for seed, data in chosen.seeds().items():
        assert chosen.run(data) is not None, seed
    found = {number: execute(chosen, number) for number in range(chosen.executions[0])}
    assert {outcome for outcome, _ in found.values()} == {"accepted", *(["refused"] if chosen.allowed else [])}, [
        trace for _, trace in found.values() if trace
    ]


def test_crashes_hangs_slowness_and_other_exceptions_are_findings(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "entrance.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    state = campaign("broken.entrance", 12, tmp_path / "state", hang=3)
    assert {found["number"]: found["outcome"] for found in state["findings"]} == {
        2: "KeyError",
        4: "killed by SIGSEGV",
        6: "slow",
        8: "hang",
        10: "memory",
    }
    assert state["done"] == 12 and campaign("broken.entrance", 12, tmp_path / "state") == state


# Its input is the number of the execution
BROKEN = """
import os, signal, time
from fuzz.entrance import Entrance

class Numbers(Entrance):
    def input(self, number):
        return "number", bytes([number])

def run(data):
    number = data[0]
    if number == 2:
        return {}["missing"]
    if number == 4:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 6:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    if number == 8:
        time.sleep(60)
    if number == 10:
        return len(b"x" * 200_000_000)
    if number % 2:
        raise ValueError
    return number

ENTRANCE = Numbers("numbers", dict, run, (ValueError,), seconds=0.2, megabytes=100)
"""


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_files(name, tmp_path):
    assert campaign(name, entrance(name).executions[1], tmp_path)["findings"] == []
