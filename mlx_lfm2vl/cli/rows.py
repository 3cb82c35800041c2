"""The rows of `batch`: read one by one, when they are needed, from folders, patterns or JSONL."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from .. import Completion, GenerationOptions, GenerationRequest, Lfm2VlError, OptionError, PromptError
from ..config.files import finite_number, no_number
from ..processing.json_lines import fault
from ..processing.open_file import beside, file_and_pages
from ..processing.picture_keys import misspelt, names_video, pictures_key, prompt_key, videos_key
from ..tasks.task import Task
from .arguments import FIELDS, SAMPLING, row_form
from .inputs import STDIN, default_prompt, is_video, pictures_in

NO_TMPDIR = "a temporary folder; TMPDIR must name one that can be written"
RESULT = (  # fields of the answer
    *("settings", "text", "result", "tool_text", "finish_reason"),
    *("prompt_tokens", "image_tokens", "generated_tokens", "error"),
)
NAMED = ("detect", "point")  # tasks whose rows name what to find, as their prompt
_LONG_OPTIONS = tuple(name for name in SAMPLING if len(name) > 8)  # short ones are near to other words
_OTHER_NAMES = {
    **dict.fromkeys(("max_token", "maxtokens", "max_new_tokens", "max_completion_tokens", "max_length"), "max_tokens"),
    "temp": "temperature",
    **dict.fromkeys(("fsp", "frames_per_second"), "fps"),
}


@dataclass
class Row:
    """A row's fields as they go to the output, and its question or what is wrong with it. `prompt` is what it is asked
    where its fields do not say it; `number` is its place in the input, from 1."""

    fields: dict[str, Any]
    question: GenerationRequest | None = None
    error: str | None = None
    prompt: str | None = None
    number: int = 0
    task: Task[Any] | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    answers: list[Completion] = field(default_factory=list)
    result: Any = None


class Rows:
    """All rows of an input, in order; each is read when it is needed. `prompt` and `options` are those of rows that say
    nothing."""

    def __init__(self, args: argparse.Namespace, prompt: str | None, options: GenerationOptions):
        self._args, self._prompt, self.options, inputs = args, prompt, options, args.input
        self._file: Path | None = None
        self._stdin: BinaryIO | None = None
        self._pictures: list[str] = []
        if any(name == STDIN or name.endswith(".jsonl") for name in inputs) and len(inputs) > 1:
            raise OptionError("a .jsonl file or - is the whole input; give one, or pictures")
        if inputs[0] == STDIN or inputs[0].endswith(".jsonl"):
            self._file = Path(os.path.expanduser(inputs[0]))
            self._stdin = _kept() if inputs[0] == STDIN else None
            try:
                if self._stdin is None and self._file.exists() and not self._file.is_file():
                    raise OptionError(f"{inputs[0]}: is not a regular file; rows are read more than once")
                self._length = sum(1 for line in self._lines() if line.strip())
            except OSError as error:
                raise OptionError(f"{inputs[0]}: cannot be read ({error.strerror or error})") from None
        else:
            self._pictures = pictures_in(inputs, args.recursive, videos=args.task is None)
            self._length = len(self._pictures)
        self._folder = Path() if self._file is None else self._file.parent  # from which rows name files
        if not self._length:
            raise OptionError(f"{inputs[0]}: has no rows")
        if args.fps is not None and not any(names_video(*each) for row in self for each in row.fields.items()):
            raise OptionError('--fps counts frames of videos, and INPUT has none; rows name animations as "video"')

    def __len__(self) -> int:
        return self._length

    def reads(self, path: str) -> bool:
        """Whether `path` is what the rows come from."""
        names = self._pictures if self._file is None else [] if self._stdin else [str(self._file)]
        files = [file_and_pages(name)[0] for name in names]
        return os.path.exists(path) and any(file.exists() and file.samefile(path) for file in files)

    def __iter__(self) -> Iterator[Row]:
        lines = (self._row(line, number) for number, line in enumerate(self._lines(), 1) if line.strip())
        rows = lines if self._file is not None else map(self._of_picture, self._pictures)
        for number, row in enumerate(rows, 1):
            row.number = number
            yield row

    def _of_picture(self, picture: str) -> Row:
        moving = is_video(picture)
        prompt = self._prompt or ("" if self._args.task else default_prompt(moving, not moving))
        fields = {"id": picture, "video" if moving else "image": picture}
        fields |= {"prompt": prompt} if prompt else {}
        return Row(fields, self._question(fields))

    def _lines(self) -> Iterator[bytes]:
        if self._stdin is None:
            assert self._file is not None
            with self._file.open("rb") as file:
                yield from file
            return
        end = 0
        while line := (self._stdin.seek(end), self._stdin.readline())[1]:
            end += len(line)
            yield line

    def digest(self, chosen: Mapping[str, Any]) -> str:
        """A digest of all rows and what was chosen for them, the same wherever the input is the same."""
        made = hashlib.blake2b(json.dumps(sorted(chosen.items()), default=repr).encode(), digest_size=8)
        for row in self:
            made.update(json.dumps([row.fields, row.prompt, row.error]).encode())
        return made.hexdigest()

    def only(self, numbers: Collection[int]) -> Iterator[Row]:
        """The rows with these numbers."""
        return (row for row in self if row.number in numbers)

    def _row(self, line: bytes, number: int) -> Row:
        fields: dict[str, Any] = {"id": number}
        try:
            data = json.loads(line.decode("utf-8-sig").rstrip(), parse_constant=no_number, parse_float=finite_number)
            if not isinstance(data, dict):
                raise PromptError("is not an object")
            fields |= data
            if clash := [name for name in RESULT if name in data]:
                way = 'call it "prompt"' if self._asked_as(data) == clash[0] else "call it otherwise"
                raise PromptError(f"the field {clash[0]!r} is the answer's; {way}")
            question = self._question(data)
            return Row(fields, question, prompt=None if "prompt" in data else str(question.prompt))
        except ValueError as error:  # of json, of UTF-8, and the library's own
            known = str(error) if isinstance(error, Lfm2VlError) else f"is not JSON ({fault(error)})"
            kept = {name: value for name, value in fields.items() if name not in RESULT}
            return Row(kept, error=f"line {number}: {known}")
        except RecursionError:
            return Row(fields, error=f"line {number}: is nested too deeply")

    def _question(self, data: Mapping[str, Any]) -> GenerationRequest:
        moving = videos_key(data)
        given = pictures_key(data, ("prompt", "system", *FIELDS, *([moving] if moving else [])), videos=True)
        if moving is None and data.get("fps") is not None:
            raise PromptError('"fps" counts frames of a video, and the row has none; name one as "video"')
        if not given and not moving and "prompt" not in data and "messages" in data:
            raise PromptError('"messages" is not read; give "prompt" and "image"')
        if other := next((key for key in data if key.lower().replace("-", "_") in _OTHER_NAMES), None):
            raise PromptError(f'"{other}" is not read; call it "{_OTHER_NAMES[other.lower().replace("-", "_")]}"')
        if near := misspelt(data, ("prompt", "system", *FIELDS, *_LONG_OPTIONS)):
            raise PromptError(f'"{near[0]}" is not read; call it "{near[1]}"')
        if key := self._asked_as(data):
            raise PromptError(f'"{key}" is not read; call it "prompt"')
        images = self._sources(data, given, "image")
        videos = self._sources(data, moving, "video")
        asks = (images or videos) and not self._args.task
        prompt = data.get("prompt", self._prompt or (default_prompt(videos, images) if asks else ""))
        if task := self._args.task:
            if task in NAMED and not prompt:
                raise PromptError(f'{task} needs the name of what to find as "prompt"')
            if task not in NAMED and "prompt" in data:
                raise PromptError(f'{task} asks by itself; leave "prompt" out')
            if "system" in data:
                raise PromptError(f'{task} has its own system prompt; leave "system" out')
        system = data.get("system", self._args.system)
        if not isinstance(prompt, str) or not (system is None or isinstance(system, str)):
            raise PromptError('"prompt" and "system" must be strings')
        own = {name: data[name] for name in SAMPLING if data.get(name) is not None}
        if (form := row_form(data, self._folder)) is not None:
            own["response_format"] = form
        fps = self._args.fps if data.get("fps") is None else data["fps"]
        return GenerationRequest(
            *(prompt, images or None, system),
            options=replace(self.options, **own),
            control_tokens=self._args.control_tokens,
            videos=[{"video": video, "fps": fps} for video in videos] or None,
        )

    def _asked_as(self, data: Mapping[str, Any]) -> str | None:
        """The key that holds a prompt under another name, where there is none."""
        return None if self._args.task or self._prompt or "prompt" in data else prompt_key(data)

    def _sources(self, data: Mapping[str, Any], key: str | None, of: str) -> list[str]:
        """The pictures or videos of a row's key. Raises `PromptError`."""
        given = [] if key is None else data[key] if isinstance(data[key], list) else [data[key]]
        if key is not None and (data[key] is None or not given or "" in given):
            raise PromptError(f'"{key}" is empty; leave it out, or name a {"picture" if of == "image" else of}')
        if not all(isinstance(each, str) for each in given):
            raise PromptError(f'"{of}" must be a path, a URL, a data URI or a list of them')
        return given if self._file is None else [beside(each, self._folder) for each in given]


def _kept() -> BinaryIO:
    """The text of stdin, in a file without a name, as rows are read more than once. Raises `OptionError`."""
    if sys.stdin.isatty():
        raise OptionError("-: stdin is the keyboard; pipe rows into it, or name a .jsonl file")
    try:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # closed with the rows
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
    except OSError as error:
        raise OptionError(f"-: rows cannot be kept in {NO_TMPDIR} ({error.strerror or error})") from None
    return file
