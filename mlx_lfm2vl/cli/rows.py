"""The rows of `batch`: read one by one from folders, patterns or JSONL, and written one by one, so that memory stays
flat and a run that was stopped goes on at the first row that is missing.

An answer's line holds the row's fields, then "settings" (a digest of model, options and, where the row has no prompt of
its own, the prompt, so that rows of different runs are not mixed), and "text", "finish_reason" and counts of tokens, or
"error".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import Answer, GenerationOptions, OptionError, OutputError, PromptError, Question
from .inputs import DEFAULT_PROMPT, pictures_in
from .options import note

SMALL_FILE = 16 * 2**20
RESULT = (
    "settings",
    "text",
    "tool_text",
    "finish_reason",
    "prompt_tokens",
    "image_tokens",
    "generated_tokens",
    "error",
)


@dataclass
class Row:
    """A row's fields as they go to the output, and its question or what is wrong with it. `prompt` is what it is asked
    where its fields do not say it."""

    fields: dict[str, Any]
    question: Question | None = None
    error: str | None = None
    prompt: str | None = None


class Rows:
    """All rows of an input, in order; each is read when it is needed."""

    def __init__(
        self,
        inputs: Sequence[str],
        prompt: str | None,
        system: str | None,
        options: GenerationOptions,
        control_tokens: bool = False,
    ):
        self._prompt, self._system = prompt, system
        self._how: dict[str, Any] = {"options": options, "control_tokens": control_tokens}
        self._file: Path | None = None
        if any(name.endswith(".jsonl") for name in inputs):
            if len(inputs) > 1:
                raise OptionError("a .jsonl file is the whole input; give one, or pictures")
            self._file = Path(inputs[0])
            self._pictures: list[str] = []
            try:
                if self._file.exists() and not self._file.is_file():
                    raise OptionError(f"{inputs[0]}: is not a regular file; rows are read more than once")
                with self._file.open("rb") as lines:
                    self._length = sum(1 for line in lines if line.strip())
            except OSError as error:
                raise OptionError(f"{inputs[0]}: cannot be read ({error.strerror or error})") from None
        else:
            self._pictures = pictures_in(inputs)
            self._length = len(self._pictures)
        if not self._length:
            raise OptionError(f"{inputs[0]}: has no rows")

    def __len__(self) -> int:
        return self._length

    def reads(self, path: str) -> bool:
        """Whether `path` is what the rows come from."""
        return any(os.path.exists(path) and os.path.samefile(path, name) for name in self._names())

    def __iter__(self) -> Iterator[Row]:
        if self._file is None:
            for picture in self._pictures:
                prompt = self._prompt or DEFAULT_PROMPT
                fields = {"id": picture, "image": picture, "prompt": prompt}
                yield Row(fields, Question(prompt, [picture], self._system, **self._how))
            return
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._row(line, number)

    def after(self, done: int) -> Waiting:
        """The rows that follow the first `done`."""
        rows = iter(self)
        for _ in range(done):
            next(rows)
        return Waiting(rows)

    def _names(self) -> list[str]:
        return self._pictures if self._file is None else [str(self._file)]

    def _row(self, line: bytes, number: int) -> Row:
        fields: dict[str, Any] = {"id": number}
        try:
            data = json.loads(line.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_number)
            if not isinstance(data, dict):
                raise PromptError("is not an object")
            fields |= data
            if clash := [name for name in RESULT if name in data]:
                raise PromptError(f"the field {clash[0]!r} is the answer's; call it otherwise")
            question = self._question(data)
            return Row(fields, question, prompt=None if "prompt" in data else str(question.prompt))
        except ValueError as error:  # of json, of UTF-8, and the library's own
            known = str(error) if isinstance(error, PromptError) else f"is not JSON ({error})"
            kept = {name: value for name, value in fields.items() if name not in RESULT}
            return Row(kept, error=f"line {number}: {known}")
        except RecursionError:
            return Row(fields, error=f"line {number}: is nested too deeply")

    def _question(self, data: Mapping[str, Any]) -> Question:
        if "image" in data and "images" in data:
            raise PromptError('has both "image" and "images"; give one of them')
        images = data.get("image", data.get("images"))
        images = [] if images is None else images if isinstance(images, list) else [images]
        prompt = data.get("prompt", self._prompt or (DEFAULT_PROMPT if images else ""))
        system = data.get("system", self._system)
        if not all(isinstance(image, str) for image in images):
            raise PromptError('"image" must be a path, a URL, a data URI or a list of them')
        if not isinstance(prompt, str) or not (system is None or isinstance(system, str)):
            raise PromptError('"prompt" and "system" must be strings')
        assert self._file is not None
        found = [self._source(image) for image in images]
        return Question(prompt, found or None, system, **self._how)

    def _source(self, image: str) -> str:
        if image.startswith("data:") or "://" in image:
            return image
        if not image:
            raise PromptError('"image" is empty; leave it out, or name a picture')
        assert self._file is not None
        return str(self._file.parent / os.path.expanduser(image))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is none")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # would be written as what is no JSON
        raise ValueError(f"{text[:50]} is too large a number")
    return value


@dataclass
class Waiting:
    """Rows on their way through a batch: those that ask nothing wait for their turn in the output."""

    rows: Iterable[Row]
    _begun: deque[Row] = field(default_factory=deque)

    def questions(self) -> Iterator[Question]:
        for row in self.rows:
            self._begun.append(row)
            if row.question is not None:
                yield row.question

    def answered(self) -> Iterator[Row]:
        """The rows that are written now that the next answer is there: that answer's row is the last."""
        while self._begun:
            row = self._begun.popleft()
            yield row
            if row.question is not None:
                return

    def rest(self) -> Iterator[Row]:
        """The rows after the last answer."""
        while self._begun:
            yield self._begun.popleft()


class Output:
    """A file of answers. What a run that was killed left behind is kept up to its last whole line.

    Raises `OutputError` where it cannot be written and `OptionError` where it is of other rows or settings.
    """

    def __init__(self, path: str, overwrite: bool, settings: str):
        self.path, self.settings, self._overwrite = path, settings, overwrite
        self.rows = self.failed = 0
        self.first_failed = 0  # the number of its line, 0 if none has
        self._end = 0  # of the last whole line
        if os.path.exists(path) and not os.path.isfile(path):
            what = "a folder" if os.path.isdir(path) else "a device or pipe"
            raise OutputError(f"{path}: cannot be written (is {what}; name a file, which a second run goes on with)")
        try:
            self._file = open(path, "a+b")  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if not os.path.getsize(self.path):
            os.unlink(self.path)  # nothing was written, so nothing is left

    def skip(self, rows: Iterator[Row]) -> int:
        """How many of the rows are there already, from the first on."""
        self._file.seek(0)
        for line in () if self._overwrite else self._file:
            if not line.endswith(b"\n"):
                self._check_torn(line, next(rows, None))
                note(f"{self.path}: the last line is not complete and is done again")
                break
            self._check(line, next(rows, None))
            self._end += len(line)
        if self.rows:
            note(f"{self.path}: {self.rows} rows are there already")
        if self.failed:
            note(
                f"{self.path}: {self.failed} of these rows have an error, the first in line {self.first_failed}; "
                "to try them again, cut the file off before that line, or --overwrite"
            )
        return self.rows

    def begin(self) -> None:
        """Cuts off what is not kept: a torn last line, or all of it."""
        self._file.truncate(self._end)

    def _check(self, line: bytes, row: Row | None) -> None:
        where = f"{self.path}: line {self.rows + 1}"
        remedy = "choose another --output, or --overwrite"
        try:
            made = json.loads(line)
            settings = made["settings"]
        except (ValueError, KeyError, TypeError):
            raise OptionError(f"{where} is no answer of this program; {remedy}") from None
        if row is None or {name: value for name, value in made.items() if name not in RESULT} != row.fields:
            raise OptionError(f"{where} is of another row than the input's; {remedy}")
        if settings != self._settings(row):
            raise OptionError(f"{where} was made with another model, prompt or other options; {remedy}")
        self._count(made)

    def _count(self, made: Mapping[str, Any]) -> None:
        self.rows += 1
        if "error" in made:
            self.failed += 1
            self.first_failed = self.first_failed or self.rows

    def _settings(self, row: Row) -> str:
        return self.settings if row.prompt is None else _digest([self.settings, row.prompt])

    def _check_torn(self, line: bytes, row: Row | None) -> None:
        """A last line without an end is cut off, so it must be the beginning of this row's answer, and not a text of
        the user's."""
        beginning = b"" if row is None else _encoded({**row.fields, "settings": self._settings(row)})[:-1]
        if not beginning or not (line.startswith(beginning) or beginning.startswith(line)):
            raise OptionError(
                f"{self.path}: line {self.rows + 1} is no answer of this run; choose another --output, or --overwrite"
            )

    def write(self, row: Row, answer: Answer | None) -> None:
        """Appends a row's answer, or its error, and hands it to the system."""
        made: dict[str, Any] = {**row.fields, "settings": self._settings(row)}
        if row.error is not None:
            made["error"] = row.error
        elif answer is not None and answer.error is not None:
            made["error"] = str(answer.error)
        elif answer is not None and answer.statistics is not None:
            made["text"] = answer.text
            if answer.tool_text:
                made["tool_text"] = answer.tool_text
            made["finish_reason"] = answer.finish_reason
            for name in ("prompt_tokens", "image_tokens", "generated_tokens"):
                made[name] = getattr(answer.statistics, name)
        try:
            self._file.write(_encoded(made) + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        self._count(made)


def _encoded(made: Mapping[str, Any]) -> bytes:
    return json.dumps(made, ensure_ascii=False).encode("utf-8", "backslashreplace")


def settings(model: str, revision: str | None, chosen: Mapping[str, Any]) -> str:
    """A digest of what all rows have in common. Of a model in a folder its files count: of small ones what they hold,
    of the others their sizes and times."""
    return _digest([model, revision, sorted(chosen.items()), *_files(Path(model))])


def _files(folder: Path) -> list[list[Any]]:
    found: list[list[Any]] = []
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or path.suffix not in (".json", ".jinja", ".txt", ".safetensors"):
                continue
            small = status.st_size <= SMALL_FILE
            found.append([path.name, status.st_size, _hash(path.read_bytes()) if small else status.st_mtime_ns])
    except OSError as error:
        raise OptionError(f"--model {folder}: cannot be read ({error.strerror or error})") from None
    return found


def _digest(what: Any) -> str:
    return _hash(json.dumps(what).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()
