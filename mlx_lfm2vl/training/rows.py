"""The rows that a model is trained on: JSON lines to conversations, nothing of a picture read.

A row is one that `batch` reads, with the answer: {"image": "a.png", "prompt": "Why?", "answer": "So."}; or one that
`batch` has written, whose answer is its "text"; or a conversation, {"messages": [...]}, with pictures in its items or
in "images". Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OptionError, PromptError
from ..generation.request import conversation
from ..processing.json_lines import each_row
from ..processing.open_file import beside
from ..processing.picture_keys import row_pictures

TRAIN, VALID, KEEP = "train.jsonl", "valid.jsonl", "keep.jsonl"
ANSWER, WRITTEN = "answer", "text"  # fields of the answer: a user's, and that of rows which `batch` has written
_KNOWN = ("prompt", "system", "messages", ANSWER)


@dataclass(frozen=True)
class TrainingRow:
    """A conversation whose turns of the assistant are learned, and the place that it stands at, for errors. `kept`: the
    model is to answer as it does without the adapter."""

    messages: list[dict[str, Any]]
    where: str
    kept: bool = False


class DataFiles(NamedTuple):
    """The files of rows to train on, to validate on and to keep as they are answered, None without."""

    train: Path
    valid: Path | None = None
    keep: Path | None = None

    @classmethod
    def of(
        cls,
        data: str | os.PathLike[str],
        valid: str | os.PathLike[str] | None = None,
        keep: str | os.PathLike[str] | None = None,
    ) -> DataFiles:
        """The files that are there.

        Args:
            data: a .jsonl file, or a folder with train.jsonl and maybe valid.jsonl and keep.jsonl.
            valid, keep: .jsonl files that come before the folder's.

        Raises:
            OptionError: there is no such file.
        """
        place = Path(data).expanduser()

        def chosen(given: str | os.PathLike[str] | None, name: str) -> Path | None:
            found = place / name if given is None else Path(given).expanduser()
            return found if given is not None or found.is_file() else None

        files = cls(place / TRAIN if place.is_dir() else place, chosen(valid, VALID), chosen(keep, KEEP))
        for each in files:
            if each is not None and not each.is_file():
                raise OptionError(f"{each}: no such file of rows; give a .jsonl file, or a folder with {TRAIN}")
        return files

    @property
    def digests(self) -> dict[str, str]:
        """Digests of what stands in them, by what they are."""
        given = {f"{name} rows": file for name, file in self._asdict().items() if file is not None}
        return {name: hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() for name, file in given.items()}


def read_rows(file: Path, kept: bool = False) -> list[TrainingRow]:
    """All rows of a file. Raises `PromptError` naming the first line that is none, `OptionError` without any."""
    return [TrainingRow(messages, f"{file}, line {number}", kept) for number, messages in each_row(file, row_messages)]


def row_messages(data: Any, folder: Path) -> list[dict[str, Any]]:
    """The conversation of a row, the answer last; paths are relative to the folder. Raises `PromptError`."""
    images = row_pictures(data, _KNOWN, (WRITTEN,))
    if "messages" in data:
        if clash := [key for key in ("prompt", "system", ANSWER) if key in data]:
            raise PromptError(f'has "messages" and "{clash[0]}"; give one of them')
        return _conversation(data["messages"], images, folder)
    answer = data.get(ANSWER, data.get(WRITTEN))
    if not isinstance(answer, str) or not answer.strip():
        none = answer is None or isinstance(answer, str)
        raise PromptError(f'has no "{ANSWER}" to learn' if none else f'"{ANSWER}" must be a text')
    if ANSWER not in data and data.get("finish_reason") not in (None, "stop"):
        raise PromptError(f'its "{WRITTEN}" was not written to its end; leave the row out, or give the "{ANSWER}"')
    if not isinstance(data.get("prompt", ""), str):
        raise PromptError('"prompt" must be a string')
    asked = conversation(data.get("prompt", ""), [beside(image, folder) for image in images], data.get("system"))
    return [*asked, {"role": "assistant", "content": answer}]


def _conversation(messages: Any, images: list[str], folder: Path) -> list[dict[str, Any]]:
    """The messages with a picture in each of their items."""
    if not isinstance(messages, list):
        raise PromptError('"messages" must be a list')
    rest = list(images)
    made = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        items = [_item(item, rest, folder) for item in content] if isinstance(content, list) else content
        made.append({**message, "content": items} if isinstance(message, Mapping) else message)
    if rest:
        raise PromptError(f"has {len(images)} pictures beside its messages, {len(rest)} more than items without one")
    checked = conversation(made)
    if checked[-1].get("role") != "assistant":
        raise PromptError("its last message is not the assistant's; the answer to learn comes last")
    for message in checked:
        if message.get("role") == "assistant" and not _is_text(message.get("content")):
            raise PromptError("a message of the assistant's is empty or holds a picture; an answer is text")
    return checked


def _is_text(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    return bool(content) and all(item.get("type") == "text" for item in content)


def _item(item: Any, rest: list[str], folder: Path) -> Any:
    """An item with its picture: its own, or the next of those beside the messages."""
    if not isinstance(item, Mapping) or item.get("type") != "image":
        return item
    own = [name for name in ("image", "url", "path") if isinstance(item.get(name), str)]
    if not own and item.get("base64") is None:
        if not rest:
            raise PromptError("has more image items than pictures")
        return {**item, "image": beside(rest.pop(0), folder)}
    return {**item, **{name: beside(item[name], folder) for name in own}}
