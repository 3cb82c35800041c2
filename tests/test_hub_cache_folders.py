"""Folders of the hub's own cache as models: revisions, and downloads that are not complete."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    EXPECTED,
    logits_of,
    refused,
)
from test_checkpoints import folder  # noqa: F401

from mlx_lfm2vl import load
from mlx_lfm2vl.errors import ConfigError, HubError, TokenizerError, WeightsError


def cached(folder: Path, *revisions: str, main: str | None = None) -> Path:  # noqa: F811
    """The folder as revisions of a repository in the hub's cache."""
    repository = folder.parent / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    for revision in revisions:
        shutil.copytree(folder, repository / "snapshots" / revision)
    if main is not None:
        (repository / "refs" / "main").write_text(main)
    return repository


def test_a_folder_of_the_hubs_cache_loads_its_branch_main(folder):  # noqa: F811
    repository = cached(folder, "aaa", "bbb", main="bbb")
    (repository / "snapshots" / "aaa" / "config.json").write_text("{")
    model, _ = load(repository)
    np.testing.assert_array_equal(logits_of(model), EXPECTED)


@pytest.mark.parametrize(
    ("revisions", "said"),
    [(("aaa", "bbb"), r"with 2 revisions; choose one of \S+/aaa, \S+/bbb"), ((), "no revision; if the download")],
)
def test_a_folder_of_the_hubs_cache_without_main(folder, revisions, said):  # noqa: F811
    refused(
        cached(folder, *revisions, main="ccc"),
        f"models--owner--name: is a folder of the hub's cache .*{said}",
        HubError,
    )


@pytest.mark.parametrize("lost", ["snapshots", "config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("dangling", [False, True], ids=["absent", "a dangling link"])
@pytest.mark.parametrize("named", ["repository", "snapshot"])
def test_an_incomplete_download_is_said_with_its_way_out(folder, lost, dangling, named):  # noqa: F811
    repository = cached(folder, "aaa")
    snapshot = repository / "snapshots" / "aaa"
    if lost == "snapshots":
        shutil.rmtree(repository / "snapshots")
        snapshot = repository
    else:
        (snapshot / lost).unlink()
        if dangling:
            (snapshot / lost).symlink_to("../../blobs/absent")
    error = HubError if lost in ("snapshots", "config.json") else (WeightsError, ConfigError, TokenizerError)
    with pytest.raises(error, match="if the download is incomplete, load 'owner/name', which fetches what is missing"):
        load(repository if named == "repository" else snapshot)


def test_the_only_revision_of_the_hubs_cache_loads(folder):  # noqa: F811
    model, _ = load(cached(folder, "aaa"))
    np.testing.assert_array_equal(logits_of(model), EXPECTED)
