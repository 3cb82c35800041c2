"""Conversations on disk, pictures included, as one JSON file."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError, PromptError
from ..processing.source import load_image, png_bytes

FORMAT = 1


def write(path: str | os.PathLike[str], messages: Sequence[Mapping[str, Any]]) -> None:
    """Writes messages whose pictures are RGB PIL images; the file appears whole or not at all. Raises `OutputError`."""
    if not isinstance(path, (str, os.PathLike)):
        raise OutputError(f"{path!r} is no path to write to")
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    plain = [{**message, "content": _to_json(message["content"])} for message in messages]
    try:
        part.write_text(json.dumps({"format": FORMAT, "messages": plain}, ensure_ascii=False), encoding="utf-8")
        part.replace(target)
    except (OSError, UnicodeEncodeError) as error:  # half a character has no UTF-8
        part.unlink(missing_ok=True)
        raise OutputError(f"{target}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The messages of a file. Raises `PromptError` if it holds none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise PromptError(f"{path}: is of format {data['format']!r}, this version reads {FORMAT}")
        messages = [{"role": str(m["role"]), "content": _from_json(m["content"])} for m in data["messages"]]
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror or error})") from None
    except PromptError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PromptError(f"{path}: is not a saved conversation ({error})") from None
    return messages


def _to_json(content: Any) -> Any:
    if isinstance(content, str):
        return content
    items = []
    for item in content:
        if item["type"] == "image":
            item = {"type": "image", "png": base64.b64encode(png_bytes(item["image"])).decode()}
        items.append(item)
    return items


def _from_json(content: Any) -> Any:
    if isinstance(content, str):
        return content
    items = []
    for item in content:
        if item["type"] == "image":
            items.append({"type": "image", "image": load_image(base64.b64decode(item["png"], validate=True))})
        else:
            items.append({"type": "text", "text": str(item["text"])})
    return items
