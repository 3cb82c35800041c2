"""The answers of `batch` on disk: written row by row, so that a run that was stopped goes on where it was.

A line holds the row's fields, then "settings" (a digest of model, options and, where the row has no prompt of its own,
the prompt, so that rows of different runs are not mixed), and "text", "finish_reason" and counts of tokens, or "error".
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import Completion, OptionError, OutputError
from ..config.files import lock
from ..errors import counted
from .rows import RESULT, Row
from .stderr import note

AHEAD, KEPT = ".ahead", ".rank"  # behind an output's name: lines that come before their turn, or in a rank without 0
REMEDY = "choose another --output, or --overwrite"
OTHER_SETTINGS = "was made with another model, prompt or other options"
SMALL_FILE = 16 * 2**20  # bytes up to which a model's files count by what they hold


class OtherRowsError(OptionError):
    """An output is of this program, but of other rows or settings."""


def unwritable(path: str, error: OSError) -> OutputError:
    """The error of a file that cannot be written."""
    return OutputError(f"{path}: cannot be written ({error.strerror or error})")


@contextlib.contextmanager
def replaced(path: str, like: str) -> Iterator[str]:
    """The name of a file to write, which then takes the place of another one, with the mode of a third. Whatever
    happens, that is as before or as after. Raises `OutputError`."""
    place, new = os.path.realpath(path), ""
    try:
        number, new = tempfile.mkstemp(prefix=f"{os.path.basename(place)}.", dir=os.path.dirname(place))
        try:
            yield new
            os.fsync(number)
        finally:
            os.close(number)
        shutil.copymode(like, new)
        os.replace(new, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        if isinstance(error, OSError):
            raise unwritable(path, error) from None
        raise


class Line(NamedTuple):
    """A line of an output: its number, where it begins, and whether it holds an error."""

    number: int
    start: int
    failed: bool


class Output:
    """A file of answers. What a run that was killed left behind is kept up to its last whole line.

    Raises `OutputError` where it cannot be written, as by another run, and `OptionError` where it is of other rows.
    """

    def __init__(self, path: str, overwrite: bool, settings: str):
        self.path, self.settings, self._overwrite = path, settings, overwrite
        self.lines: dict[int, Line] = {}  # of the rows that are there, by their numbers
        self._length = self._end = 0  # number of whole lines, and the last one's end
        if path == "-":
            raise OutputError("-: answers are not written to stdout; name a file, which a second run goes on with")
        if os.path.exists(path) and not os.path.isfile(path):
            what = "a folder" if os.path.isdir(path) else "a device or pipe"
            raise OutputError(f"{path}: cannot be written (is {what}; name a file, which a second run goes on with)")
        try:
            self._file = open(path, "a+b")  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            lock(self._file.fileno())
        except BlockingIOError:
            self._file.close()
            raise OutputError(f"{path}: another run writes it; wait for its end, or choose another --output") from None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # of what `write` could not write either
            if kind is None:
                raise unwritable(self.path, error) from None
        finally:
            with contextlib.suppress(FileNotFoundError):  # after `remove`
                if not os.path.getsize(self.path):
                    os.unlink(self.path)  # nothing was written, so nothing is left

    @property
    def failed(self) -> list[int]:
        """Numbers of the rows that have an error."""
        return [number for number, line in self.lines.items() if line.failed]

    def match(self, rows: Callable[[], Iterable[Row]], others: bool = True) -> None:
        """Finds the rows that are there already: those of an "id" have its lines, in their order. `others` says whether
        lines of further rows may be there, too. Raises `OptionError` where a row differs from its line."""
        if self._overwrite:
            self._check_own(rows())
            return
        there, torn = self._read()
        total = 0
        for row in rows():
            total += 1
            if lines := there.get(json.dumps(row.fields["id"])):
                number, start, _ = lines.popleft()
                self._check(number, start, row)
        if left := [line for lines in there.values() for line in lines]:
            if not others or not self.lines:
                raise OtherRowsError(f"{self.path}: line {left[0][0]} is of another row than the input's; {REMEDY}")
            for number, _, made in left:
                if "prompt" in made and made["settings"] != self.settings:
                    raise OtherRowsError(f"{self.path}: line {number} {OTHER_SETTINGS}; {REMEDY}")
        if torn:
            self._check_torn(torn, rows())
            note(f"{self.path}: the last line is not complete and is done again")
        if self.lines:
            every = "all " if len(self.lines) == total > 1 else ""
            note(f"{self.path}: {every}{counted(len(self.lines), 'row', be=True)} there already")
        if left:
            kept = counted(len(left), "row", be=True)
            note(f"{self.path}: {kept} kept that the input does not have")

    def _read(self) -> tuple[dict[str, deque[tuple[int, int, dict[str, Any]]]], bytes]:
        """Number, place and what there is of settings and prompt of the lines of each id, and a torn last line."""
        there: dict[str, deque[tuple[int, int, dict[str, Any]]]] = {}
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                return there, line
            self._length += 1
            made = self._parse(line, self._length)
            kept: dict[str, Any] = {name: made[name] for name in ("settings", "prompt") if name in made}
            there.setdefault(json.dumps(made["id"]), deque()).append((self._length, self._end, kept))
            self._end += len(line)
        return there, b""

    def missing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that are not there when it is called."""
        there = frozenset(self.lines)
        return (row for row in rows if row.number not in there)

    def begin(self) -> None:
        """Cuts off what is not kept: a torn last line, or all of it."""
        self._file.truncate(self._end)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            made = json.loads(line)
            if "settings" in made and "id" in made:
                return made
        except (ValueError, TypeError):
            pass
        remedy = REMEDY if number > 1 else "choose another --output"
        raise OptionError(f"{self.path}: line {number} is no answer of this program; {remedy}")

    def _check_own(self, rows: Iterable[Row]) -> None:
        """Only a file that begins as answers do is replaced."""
        self._file.seek(0)
        first = self._file.readline()
        if first.endswith(b"\n"):
            self._parse(first, 1)
        elif first:
            self._check_torn(first, rows)

    def _check(self, number: int, start: int, row: Row) -> None:
        where = f"{self.path}: line {number}"
        self._file.seek(start)
        made = self._parse(self._file.readline(), number)
        fields = {name: value for name, value in made.items() if name not in RESULT}
        if fields != row.fields:
            both = {**fields, **row.fields}
            names = [name for name in both if fields.get(name, ...) != row.fields.get(name, ...)]
            raise OtherRowsError(f"{where} is of another row than the input's ({', '.join(names)}); {REMEDY}")
        if made["settings"] != _row_settings(self.settings, row):
            raise OtherRowsError(f"{where} {OTHER_SETTINGS}; {REMEDY}")
        self.lines[row.number] = Line(number, start, "error" in made)

    def _check_torn(self, line: bytes, rows: Iterable[Row]) -> None:
        """A last line without an end is cut off, so it must be the beginning of a missing row's answer, and not a text
        of the user's."""
        for row in self.missing(rows):
            beginning = _encoded({**row.fields, "settings": _row_settings(self.settings, row)})[:-2]
            if line.startswith(beginning) or beginning.startswith(line):
                return
        remedy = REMEDY if self._length else "choose another --output"
        raise OptionError(f"{self.path}: line {self._length + 1} is no answer of this run; {remedy}")

    def write(self, row: Row, answer: Completion | None) -> None:
        """Appends a row's answer, or its error, and hands it to the system."""
        self.append(row.number, *line_of(self.settings, row, answer))

    def append(self, number: int, line: bytes, failed: bool) -> None:
        """Appends the line of the row with this number, as `line_of` makes it."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._length += 1
        self.lines[number] = Line(self._length, self._end, failed)
        self._end += len(line)

    def taken(self, number: int) -> tuple[bytes, bool]:
        """The line of a row that is there, and whether it holds an error."""
        line = self.lines[number]
        self._file.seek(line.start)
        return self._file.readline(), line.failed

    def error(self, number: int) -> str:
        """The error that the line of a row holds."""
        with open(self.path, "rb") as lines:  # of which `take_over` may have made another file
            error: str = json.loads(next(itertools.islice(lines, self.lines[number].number - 1, None)))["error"]
        return error

    @classmethod
    def left(cls, path: str, overwrite: bool, settings: str, rows: Callable[[], Iterable[Row]]) -> Output:
        """An output of some of an input's rows: as a run that was stopped has left it, if what lies there is of these
        rows, else a new one."""
        output = cls(path, overwrite, settings)
        try:
            output.match(rows, others=False)
        except OtherRowsError:  # a run was killed in `take_over`, or other rows have failed since
            output.lines, output._length, output._end = {}, 0, 0
        output.begin()
        return output

    def beside(self, suffix: str, rows: Callable[[], Iterable[Row]]) -> Output:
        """A further output for some of the rows, next to this one."""
        return self.left(self.path + suffix, self._overwrite, self.settings, rows)

    def take_over(self, others: Output) -> None:
        """Puts another output's lines of rows in place of this one's."""
        with (
            replaced(self.path, self.path) as new,
            open(new, "wb") as file,
            open(self.path, "rb") as lines,
            open(others.path, "rb") as made,
        ):
            answers = made.readlines()
            instead = {self.lines[row].number: answers[line.number - 1] for row, line in others.lines.items()}
            file.writelines(instead.get(number, line) for number, line in enumerate(lines, 1))
        others.remove()
        self.lines |= {row: self.lines[row]._replace(failed=line.failed) for row, line in others.lines.items()}

    def remove(self) -> None:
        """Takes the file away, whose lines are elsewhere. Raises `OutputError`."""
        self._file.close()
        try:
            os.unlink(self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be removed ({error.strerror or error})") from None


class InOrder:
    """Writes lines into an output. Those before whose turn others are missing wait in a file beside it, which a run
    that is stopped leaves for the next one."""

    def __init__(self, into: Output, numbers: Iterable[int], rows: Callable[[], Iterable[Row]]):
        """`numbers` of all rows that belong in it, ascending; `rows` reads them."""
        self._into, self._rows = into, rows
        self._open = deque(number for number in numbers if number not in into.lines)
        self._ahead: Output | None = None
        self.left = len(self._open)  # rows that are not there

    def __enter__(self) -> InOrder:
        """Takes up what earlier runs have left."""
        if os.path.exists(self._into.path + AHEAD):
            self._ahead = self._into.beside(AHEAD, self._rows)
            self.left = len(self.missing)
        self._advance()
        for path in sorted(glob.glob(glob.escape(self._into.path + KEPT) + "*")):
            with self._into.beside(path.removeprefix(self._into.path), self._rows) as kept:
                for number in list(kept.lines):
                    self.put(number, *kept.taken(number))
                kept.remove()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._ahead is not None:
            if not self._open:
                self._ahead.remove()
            self._ahead.__exit__(*error)

    @property
    def missing(self) -> list[int]:
        """Numbers of the rows that are not there."""
        return [number for number in self._open if self._ahead is None or number not in self._ahead.lines]

    def put(self, number: int, line: bytes, failed: bool) -> None:
        """Takes a row's line; one that is there already counts."""
        if number in self._into.lines or (self._ahead is not None and number in self._ahead.lines):
            return
        self.left -= 1
        if self._open[0] == number:
            self._write(line, failed)
            self._advance()
            return
        if self._ahead is None:
            self._ahead = self._into.beside(AHEAD, self._rows)
        self._ahead.append(number, line, failed)

    def _advance(self) -> None:
        while self._ahead is not None and self._open and self._open[0] in self._ahead.lines:
            self._write(*self._ahead.taken(self._open[0]))

    def _write(self, line: bytes, failed: bool) -> None:
        self._into.append(self._open.popleft(), line, failed)


def line_of(settings: str, row: Row, answer: Completion | None) -> tuple[bytes, bool]:
    """A row's line in the output, and whether it holds an error."""
    made: dict[str, Any] = {**row.fields, "settings": _row_settings(settings, row)}
    if row.error is not None:
        made["error"] = row.error
    elif answer is not None and answer.error is not None:
        made["error"] = str(answer.error)
    elif answer is not None and answer.statistics is not None:
        made["text"] = answer.text
        if row.task is not None:
            made["result"] = row.result
        if answer.tool_text:
            made["tool_text"] = answer.tool_text
        made["finish_reason"] = answer.finish_reason
        for name in ("prompt_tokens", "image_tokens", "generated_tokens"):
            made[name] = getattr(answer.statistics, name)
    return _encoded(made), "error" in made


def _row_settings(settings: str, row: Row) -> str:
    return settings if row.prompt is None else _digest([settings, row.prompt])


def _encoded(made: Mapping[str, Any]) -> bytes:
    return json.dumps(made, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


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
