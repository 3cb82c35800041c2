"""`push_to_hub` of models, processors and configurations, and the text of their JSON files."""

from __future__ import annotations

import json
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


class Shared:
    """Base of the classes that `save_pretrained` writes into a folder and `push_to_hub` into a repository."""

    save_pretrained: Any

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Saves into a repository; see `push_folder`."""
        return push_folder(self.save_pretrained, repo_id, **options)


class SharedFile(Shared):
    """What is a JSON file, as `to_dict` gives it."""

    to_dict: Any

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"
