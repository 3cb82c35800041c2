"""`push_to_hub` of models, processors and configurations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hub import publish
from .loading import no_more


def push_folder(
    save: Callable[[str], Any],
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    **others: Any,
) -> str:
    """Lets `save` write a folder, and uploads its files in one commit.

    Args:
        save: writes into the folder of that name.
        repo_id: `owner/name`, made if it is not there.
        commit_message: of the commit.
        private: make a new repository private.
        token: for the hub.
        others: none are left.

    Returns:
        The commit's URL.

    Raises:
        HubError, OptionError
    """
    no_more(others, "push_to_hub")
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        files: dict[str, Path | bytes] = {each.name: each for each in sorted(Path(folder).iterdir()) if each.is_file()}
        message = commit_message or f"Upload {', '.join(files)}"
        return publish(files, repo_id, message=message, private=bool(private), token=token)
