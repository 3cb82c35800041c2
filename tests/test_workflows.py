"""The workflow, `.ci/run`, the Makefile and pyproject.toml agree: on targets, Python versions and systems."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CLASSIFIERS = PROJECT["project"]["classifiers"]
JOBS = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
ROWS = JOBS["test"]["strategy"]["matrix"]["include"]

TARGETS = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[0].split()
COMMAND = re.compile(r"make (\w+)( PYTHON=\S+)?")
VERSIONS = [name.rpartition(" ")[2] for name in CLASSIFIERS if re.search(r"Python :: 3\.\d+$", name)]
OLDEST = VERSIONS[0]


def minor(version: str) -> int:
    """The 12 of "3.12"."""
    return int(version.removeprefix("3."))


def commands(name: str) -> set[str]:
    """The commands of a job."""
    return {step["run"] for step in JOBS[name]["steps"] if "run" in step}


def test_every_command_of_the_workflow_is_a_target_of_the_makefile():
    found = [COMMAND.fullmatch(step["run"].strip()) for step in STEPS if "run" in step]
    assert found and all(found)
    assert {match[1] for match in found if match} <= set(TARGETS)
    assert commands("check") == {"make check"}
    assert "make test" in commands("test")


def test_ci_run_runs_a_part_of_the_workflow():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    run = set(re.findall(r"^make .*$", script, re.M))
    assert run and run <= {step.get("run") for step in STEPS}


def test_a_job_sets_up_before_it_runs():
    for job in JOBS.values():
        kinds = ["uses" if "uses" in step else "run" for step in job["steps"]]
        assert kinds == sorted(kinds, reverse=True)
        assert [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step] == [
            "actions/checkout",
            "actions/setup-python",
        ]
    assert JOBS["test"]["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
    assert JOBS["check"]["steps"][1]["with"]["python-version"] == OLDEST


def test_actions_are_pinned_by_major_version():
    for step in STEPS:
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


def test_the_workflow_may_only_read_and_ends():
    triggers = WORKFLOW[True]  # YAML 1.1 reads the key `on` as true
    assert set(triggers) == {"push", "pull_request"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    for job in JOBS.values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 60


def test_the_matrix_covers_the_classifiers_and_nothing_else():
    assert all(isinstance(row["python"], str) for row in ROWS)
    systems = {"MacOS": "macos", "POSIX :: Linux": "ubuntu"}
    declared = [name.removeprefix("Operating System :: ") for name in CLASSIFIERS if name.startswith("Operating")]
    assert {row["os"].partition("-")[0] for row in ROWS} == {systems[name] for name in declared}
    assert {row["python"] for row in ROWS} == set(VERSIONS)
    for system in {row["os"] for row in ROWS}:
        tested = sorted((row["python"] for row in ROWS if row["os"] == system), key=minor)
        assert (tested[0], tested[-1]) == (VERSIONS[0], VERSIONS[-1]), system
    rows = [(row["os"], row["python"]) for row in ROWS]
    assert len(rows) == len(set(rows))


def test_the_oldest_python_is_the_same_everywhere():
    assert [minor(version) for version in VERSIONS] == list(range(minor(OLDEST), minor(OLDEST) + len(VERSIONS)))
    assert PROJECT["project"]["requires-python"] == f">={OLDEST}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{minor(OLDEST)}"
    assert f"sys.version_info < (3, {minor(OLDEST)})" in MAKEFILE
    search = re.findall(r"for p in python3 (.*?);", MAKEFILE)[0].split()
    assert search == [f"python{version}" for version in reversed(VERSIONS)]


@pytest.mark.parametrize("name", ["Makefile", "README.md", ".ci/run"])
def test_a_text_that_names_the_oldest_python_names_the_right_one(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"Python >= (3\.\d+)|\((3\.\d+) or later", text)
    assert {first or second for first, second in named} == {OLDEST}


def test_make_help_lists_every_target():
    assert re.findall(r'^\t@echo "make (\w+) ', MAKEFILE, re.M) == [name for name in TARGETS if name != "help"]
    for target in TARGETS:
        assert re.search(rf"^{target}:(?! export)", MAKEFILE, re.M), target
    for name in re.findall(r"^([a-z]\w*)[^=\n]*:(?!=)", MAKEFILE, re.M):
        assert name in TARGETS, name
