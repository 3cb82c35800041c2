"""Conversations on disk, pictures included, as one JSON file.

Only regular files are read and written. A file that is there is replaced only if it is a saved conversation or empty;
a link to one is followed. What is read is bounded, and its pictures come under the processor's `SourcePolicy`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.files import open_regular
from ..errors import ImageError, OutputError, PromptError, one_line, short
from ..processing.fetch import DEFAULT_POLICY, SourcePolicy
from ..processing.load_image import Picture, load_image, png_bytes
from ..processing.video import Video, held

FORMAT = 1
MAX_BYTES = 2**30
_BEGINNING = re.compile(rb'\s*\{\s*"format"\s*:\s*\d+\s*,\s*"messages"\s*:')


def write(path: str | os.PathLike[str], messages: Sequence[Mapping[str, Any]]) -> None:
    """Writes messages whose pictures are RGB PIL images and whose videos hold their frames; the file appears whole or
    not at all. Raises `OutputError`, also for a path at which something else stands than a saved conversation."""
    target = _target(path)
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    plain = [{**message, "content": _to_json(message["content"])} for message in messages]
    try:
        with open(part, "xb") as file:
            data = json.dumps({"format": FORMAT, "messages": plain}, ensure_ascii=False).encode()
            if len(data) > MAX_BYTES:
                raise OutputError(f"{path}: cannot be written (the conversation has more than {MAX_BYTES >> 30} GiB)")
            file.write(data)
        part.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OutputError) or not isinstance(error, (OSError, UnicodeEncodeError)):
            raise
        reason = error.strerror or error if isinstance(error, OSError) else "half a character has no UTF-8"
        raise OutputError(f"{path}: cannot be written ({reason})") from None


def _target(path: Any) -> Path:
    """The file to write, links followed. Raises `OutputError` where none can be or another one is."""
    name = _file_name(path, "write to", OutputError)
    try:
        target = Path(os.path.realpath(name))
        if target.is_dir() or name.endswith(os.sep):
            raise OutputError(f"{name}: is a folder; name a file")
        if not target.exists():
            if os.path.islink(name):
                raise OutputError(f"{name}: is a link to a file that is not there; name the file")
            return target
        if not target.is_file():
            raise OutputError(f"{name}: is a device or pipe; name a file")
        with open_regular(target) as file:
            beginning = file.read(200)
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{name}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    if beginning and not _BEGINNING.match(beginning):
        raise OutputError(f"{name}: is there already and is no saved conversation; choose another name")
    return target


def read(path: str | os.PathLike[str], policy: SourcePolicy = DEFAULT_POLICY) -> list[dict[str, Any]]:
    """The messages of a file. Raises `PromptError` if it holds none, or a picture that `policy` refuses."""
    name = _file_name(path, "read from", PromptError)
    try:
        with open_regular(Path(name)) as file:
            size = os.fstat(file.fileno()).st_size
            text = file.read(size) if size <= MAX_BYTES else None
    except OSError as error:
        raise PromptError(f"{name}: cannot be read ({error.strerror or error})") from None
    if text is None:
        raise PromptError(f"{name}: is no saved conversation (has more than {MAX_BYTES >> 30} GiB)")
    try:
        data = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PromptError(f"{name}: is not a saved conversation (not UTF-8, byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise PromptError(f"{name}: is not a saved conversation (no JSON from character {error.pos} on)") from None
    except (ValueError, RecursionError):  # numbers and nesting that Python cannot hold
        raise PromptError(f"{name}: is not a saved conversation (too long a number, or nested too deeply)") from None
    del text
    if not isinstance(data, dict) or "format" not in data or not isinstance(data.get("messages"), list):
        raise PromptError(f"{name}: is not a saved conversation (it has no 'format' and list of 'messages')")
    if data["format"] != FORMAT:
        raise PromptError(f"{name}: is of format {short(repr(data['format']))}, this version reads {FORMAT}")
    return [
        _message(message, policy, f"{name}: is not a saved conversation (message {number}")
        for number, message in enumerate(data["messages"], 1)
    ]


def _file_name(path: Any, purpose: str, error: type[Exception]) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise error(f"{path!r} is no path to {purpose}")
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise error(f"{short(name) or 'the empty name'}: is no name of a file")
    return name


def _to_json(content: Any) -> Any:
    if isinstance(content, str):
        return content
    items = []
    for item in content:
        if item["type"] == "image":
            item = {"type": "image", "png": _png(item["image"]), "name": getattr(item["image"], "filename", "")}
        elif item["type"] == "video":
            video = item["video"]
            frames = video.read(range(video.count))
            item = {"type": "video", "frame_rate": video.frame_rate, "numbers": video.numbers, "size": video.size}
            item |= {"frames": [_png(frame) for frame in frames], "name": os.path.basename(video.label)}
        items.append(item)
    return items


def _png(image: Any) -> str:
    return base64.b64encode(png_bytes(image)).decode()


def _message(message: Any, policy: SourcePolicy, where: str) -> dict[str, Any]:
    """A message as the file has it; `where` begins what is said of another."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not role:
        raise PromptError(f"{where} has no role)")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, list):
        raise PromptError(f"{where} has no content)")
    return {"role": role, "content": [_item(item, policy, where) for item in content]}


def _item(item: Any, policy: SourcePolicy, where: str) -> dict[str, Any]:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return {"type": "text", "text": item["text"]}
    if kind == "video":
        return {"type": "video", "video": _video(item, policy, where)}
    if kind != "image":
        raise PromptError(f"{where} has an item that is neither text, picture nor video)")
    picture = _picture(item.get("png"), policy, where)
    picture.filename = _name(item, where)  # type: ignore[attr-defined]  # as Pillow's own of files
    return {"type": "image", "image": picture}


def _name(item: dict[str, Any], where: str) -> str:
    """The name of what was a picture or video file, empty where there was none."""
    name = item.get("name") or ""
    if not isinstance(name, str):
        raise PromptError(f"{where} has a {item['type']} whose name is {short(repr(name))})")
    return short(one_line(name))


def _video(item: dict[str, Any], policy: SourcePolicy, where: str) -> Video:
    said: list[Any] = [item.get(name) for name in ("frames", "frame_rate", "numbers", "size")]
    frames, rate, numbers, size = said
    is_rate = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < math.inf
    if not (is_rate and isinstance(frames, list) and frames and _rise(numbers) and len(numbers) == len(frames)):
        raise PromptError(f"{where} has a video without frames, their numbers or their rate)")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
        raise PromptError(f"{where} has a video whose size is {short(repr(size))})")
    if size is not None and not (min(size) > 0 and size[0] * size[1] <= policy.max_pixels):
        raise PromptError(f"{where} has a video of the size {size[0]}x{size[1]})")
    pictures = [_picture(frame, policy, where) for frame in frames]
    return held(
        _name(item, where) or "a saved video", pictures, rate, numbers, None if size is None else (size[0], size[1])
    )


def _rise(numbers: Any) -> bool:
    whole = isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**53 for number in numbers)
    return whole and numbers == sorted(numbers)


def _picture(png: Any, policy: SourcePolicy, where: str) -> Picture:
    try:
        if not isinstance(png, str):
            raise ImageError("there is none")
        if len(png) > policy.max_bytes * 4 // 3 + 4:
            raise ImageError(f"more than {policy.max_bytes} bytes")
        return load_image(base64.b64decode(png, validate=True), policy)
    except (ImageError, binascii.Error, ValueError) as error:
        reason = str(error) if isinstance(error, ImageError) else "is not base64"
        raise PromptError(f"{where}, a picture: {reason})") from None
