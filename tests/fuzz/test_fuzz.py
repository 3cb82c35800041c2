"""Every entrance refuses or accepts what comes: few changed files here, 100,000 in `make soak`."""

import pkgutil

import pytest

import fuzz
from fuzz.__main__ import campaign, entrance, execute

NAMES = [
    found.name
    for found in pkgutil.iter_modules(fuzz.__path__)
    if found.name not in ("__main__", "entrance", "folders", "test_fuzz")
]


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_accepted_and_changed_ones_too_or_refused(name):
    chosen = entrance(name)
    for seed, data in chosen.seeds().items():
        assert chosen.run(data) is not None, seed
    found = {number: execute(chosen, number) for number in range(300)}
    assert {outcome for outcome, _ in found.values()} == {"accepted", "refused"}, [
        trace for _, trace in found.values() if trace
    ]


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_100000_changed_files(name, tmp_path):
    assert campaign(name, 100_000, tmp_path)["findings"] == []
