"""The exceptions that the library raises. Each message is one line that names the thing and the way out.

Every class is an `Lfm2VlError`, so that an app can catch them all, and also the built-in exception that the case is an
instance of, so that code written for the reference implementation (`except ValueError`) goes on working.
"""

import difflib
from collections.abc import Collection, Iterable, Sized

FEWER_MEDIA = "fewer or smaller pictures, fewer frames of videos (fps)"  # the way out of a prompt that is too large


def one_line(message: str) -> str:
    """The message on one line. File names and answers of servers can hold anything: line breaks become spaces, and what
    a terminal would obey (escape sequences, changes of direction) is shown as its number."""
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def short(name: str) -> str:
    """A name for messages: one line, of bounded length, without characters that a terminal obeys."""
    line = one_line(name[:1000])
    return line if len(line) <= 120 else line[:100] + "..."


def counted(number: int, noun: str, *, be: bool = False) -> str:
    """A number and what it counts: "1 row", "2 rows"; with `be` and what these do: "1 row is", "2 rows are"."""
    text = f"{number} {noun}" if number == 1 else f"{number} {noun}s"
    return f"{text} {'is' if number == 1 else 'are'}" if be else text


def and_more(things: Sized) -> str:
    """What stands behind the first of some things: " and 2 more"; nothing where it is the only one."""
    return f" and {len(things) - 1} more" if len(things) > 1 else ""


def first_line(error: BaseException) -> str:
    """The words of a library on a file, for a message: their first line, printable, of at most 200 characters."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= 200 else f"{text[:196]} ..."


def did_you_mean(words: Iterable[str], known: Collection[str]) -> str:
    """The end of an error line about wrong words: the known ones that begin so or are nearly the same, if there are
    any."""
    near = []
    for word in (each.partition("=")[0] for each in words):
        begun = [name for name in known if len(word.strip("-/")) > 1 and name.startswith(word)]
        near += [min(begun, key=len)] if begun else difflib.get_close_matches(word, known, 1, 0.7)
    return f"; did you mean {', '.join(near)}?" if near else ""


class Lfm2VlError(Exception):
    """Base of all errors that this package raises on purpose."""

    def __init__(self, *arguments: object):
        super().__init__(*(one_line(each) if isinstance(each, str) else each for each in arguments))


class ConfigError(Lfm2VlError, ValueError):
    """A model folder's JSON files are missing, unreadable or hold a value that makes no sense."""


class WeightsError(Lfm2VlError, ValueError):
    """Weight files are missing or damaged, or their tensors do not fit the configuration."""


class HubError(Lfm2VlError, OSError):
    """A model could not be found on disk or fetched from the hub."""


class ImageError(Lfm2VlError, ValueError):
    """A picture cannot be read or makes no sense as a picture."""


class ImageWarning(UserWarning):
    """Only a part of a picture is read (the first frame of an animation, the first page), or its orientation or
    its colours are not known; the message names it. Issued through `warnings`, as it stops nothing."""


class KeptFileWarning(UserWarning):
    """A file of a cache's folder cannot be read and is left out, or cannot be written; the message names it."""


class TokenizerError(Lfm2VlError, ValueError):
    """The tokenizer files are missing, damaged or lack a token that the model needs."""


class TemplateError(Lfm2VlError, ValueError):
    """The chat template is missing, cannot be parsed or refuses the conversation."""


class PromptError(Lfm2VlError, ValueError):
    """Text and pictures of a call do not belong together (count of placeholders, roles, empty prompts)."""


class ContextLengthError(PromptError):
    """A prompt has more tokens than the model has positions."""


class OptionError(Lfm2VlError, ValueError):
    """An argument or option has a value outside its range; the message names it."""


class ConstraintError(Lfm2VlError, ValueError):
    """A form of answers (a JSON schema, a regular expression, a grammar) that cannot be held; the message names the
    keyword and its place."""


class InputError(Lfm2VlError, ValueError):
    """The arrays given to a model do not fit each other or the configuration."""


class NotFiniteError(Lfm2VlError, ArithmeticError):
    """A computation gave NaN or infinity; the message names the tensor or the part of the model where it begins."""


class OutputError(Lfm2VlError, OSError):
    """A result cannot be written where it was asked for."""


class OutOfMemoryError(Lfm2VlError, MemoryError):
    """Work will not fit into memory, or an allocation failed; the message says what would fit."""


class DistributedError(Lfm2VlError, RuntimeError):
    """Ranks of `mlx.launch` do not reach each other, do not agree, or one of them is gone."""


class QueueFullError(Lfm2VlError, RuntimeError):
    """An engine has as many requests waiting as it may; try again later."""


class EngineClosedError(Lfm2VlError, RuntimeError):
    """An engine was closed, or let go of its model before a result was whole."""


class LoadCancelledError(Lfm2VlError, RuntimeError):
    """A model was being loaded or downloaded when the caller's `stop` ended that."""


class EngineThreadError(Lfm2VlError, RuntimeError):
    """An engine's own thread was to wait for an answer that it makes itself."""


class ForkError(Lfm2VlError, RuntimeError):
    """A process was forked from one that had computed: MLX's threads are not in it, and it cannot compute."""


class ToolCallError(Lfm2VlError, ValueError):
    """A text of a model that was to be a tool call cannot be read as one; the message names the place."""


class ToolCallWarning(UserWarning):
    """Beside tool calls that can be read, a model wrote one that cannot; the message names the place. Issued through
    `warnings`, as the others are returned."""


class AnswerError(Lfm2VlError, ValueError):
    """A model's answer cannot be read as the result of a task; the message names the place."""


class AnswerWarning(UserWarning):
    """Beside what could be read of a model's answer, something could not; the message names the place. Issued through
    `warnings`, as the rest is returned."""


def drop_frames(error: BaseException) -> None:
    """Takes away the frames behind an error, which hold the arrays of its batch for as long as the request is kept; the
    library's own errors say all that there is to know."""
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__
