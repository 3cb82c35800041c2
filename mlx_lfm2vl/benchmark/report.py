"""The result of a benchmark: numbers with their units, as JSON and as a table to paste."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import counted
from .machine import Machine

COLUMNS = 80  # of a terminal
PARTS = ("read", "preprocess", "vision", "prefill")
TIMES = ("picture", "tokens", *PARTS, "peak memory")  # headings
SPEEDS = ("picture", "first token", "from start", "tokens/s", "MB a token", "of bandwidth")
FORMS = ("form", "ms a step", "with a mask", "ratio", "tokens", "model steps", "ratio")
DRAFTS = ("answer", "tokens/s", "with drafts", "ratio", "tokens", "model steps", "right")
AGAIN = ("first token of", "a question", "a second one", "after idling", "idle for")
TOGETHER = ("pictures at once", "pictures/s", "tokens/s", "peak memory")


@dataclass(frozen=True)
class Answer:
    """Medians of the runs of one kind of question, in seconds and bytes.

    `picture`: "WIDTHxHEIGHT", or "text" for a question without one. `parts` of the time to the first token, once the
    model is loaded: `read` (the file is read and decoded), `preprocess` (resized, cut into patches, text into tokens),
    `vision` (tower and projector), `prefill` (the language model over the prompt, and the first token chosen).
    `first_token` is the whole of it, `from_start` with import and load before. `bytes_per_token`: weights and cache
    that a step of the language model reads; `bandwidth_share`: those times `tokens_per_second` over the memory's
    bandwidth. `peak_memory`: the most that MLX held, weights included.
    """

    picture: str
    prompt_tokens: int
    image_tokens: int
    generated_tokens: int
    parts: dict[str, float]
    first_token: float
    from_start: float
    tokens_per_second: float
    bytes_per_token: int
    bandwidth_share: float
    peak_memory: int


@dataclass(frozen=True)
class Batch:
    """Medians of questions answered together, from reading the pictures to the last token of all."""

    size: int
    picture: str
    generated_tokens: int
    seconds: float
    pictures_per_second: float
    tokens_per_second: float
    peak_memory: int


@dataclass(frozen=True)
class Constraints:
    """Medians. `step` and `masked_step`: seconds of a token without a form, and with one that allows any text.
    `tokens` and `model_steps` of an answer of six fields; without a form each token takes a step."""

    step: float
    masked_step: float
    tokens: int
    model_steps: int

    @property
    def mask_ratio(self) -> float:
        """A step with a mask over one without."""
        return self.masked_step / self.step

    @property
    def fewer_steps(self) -> float:
        """How many times fewer runs of the model the answer takes."""
        return self.tokens / self.model_steps


@dataclass(frozen=True)
class Drafts:
    """Medians of an answer to a question asked "first", or "again" behind the answer (by n-grams), or "again, auto"
    (these by the clock), or with drafts that are "all wrong" (by the clock), or of a model ("first, model" and "again,
    model"). `plain` and `drafting`: tokens a second
    without drafts and with them. `model_steps` with them; `drafted_tokens` were proposed, `accepted_tokens` were
    right."""

    answer: str
    plain: float
    drafting: float
    tokens: int
    model_steps: int
    drafted_tokens: int
    accepted_tokens: int


@dataclass(frozen=True)
class Again:
    """Medians of seconds to the first token: of a `first` question about a picture, of a `second` one about the same,
    and of a question after `idle_seconds` without work (`idle`). The picture's file is read for each."""

    first: float
    second: float
    idle: float
    idle_seconds: float


@dataclass(frozen=True)
class Report:
    """`weights`: bytes by dtype, as the model is held in memory. `load_seconds`: with the files in the system's cache.
    `bandwidth`: bytes a second, measured. `complete`: false if it was stopped before all was measured."""

    model: str
    machine: Machine
    bandwidth: float
    weights: dict[str, int]
    repeats: int
    import_seconds: float
    load_seconds: float
    answers: tuple[Answer, ...]
    batches: tuple[Batch, ...]
    constraints: Constraints | None = None
    drafts: tuple[Drafts, ...] = ()
    draft_model: str | None = None
    again: Again | None = None
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)

    def table(self) -> str:
        """Markdown that can be read as it is, in 80 columns."""
        lines = [line for text in self._heading() for line in wrapped(text)]
        if self.answers:
            lines += ["", *aligned([TIMES, *map(_times, self.answers)])]
            lines += ["", *aligned([SPEEDS, *map(_speeds, self.answers)])]
        if self.batches:
            lines += ["", *aligned([TOGETHER, *map(_together, self.batches)])]
        if self.constraints is not None:
            lines += ["", *aligned([FORMS, _forms(self.constraints)])]
        if self.drafts:
            lines += ["", *aligned([DRAFTS, *map(_drafts, self.drafts)])]
        if self.again is not None:
            lines += ["", *aligned([AGAIN, _again(self.again)])]
        return "\n".join(lines)

    def _heading(self) -> list[str]:
        machine = self.machine
        device = (
            f" on {machine.device}" if machine.device_type != "cpu" else f", {machine.blas}" if machine.blas else ""
        )
        held = ", ".join(f"{size / 1e9:.3f} GB {dtype}" for dtype, size in self.weights.items())
        versions = f"mlx-lfm2vl {machine.versions['mlx-lfm2vl']}, MLX {machine.versions.get('mlx', '?')}"
        tokens = max((answer.generated_tokens for answer in self.answers), default=0)
        length = f", {counted(tokens, 'token')} an answer" if tokens else ""
        return [
            f"{versions} {machine.device_type}{device}, backend {machine.backend}, Python {machine.python}",
            f"{machine.name}, {counted(machine.cores, 'core')}, {machine.memory / 2**30:.0f} GiB, {machine.system}; "
            f"memory {self.bandwidth / 1e9:.1f} GB/s",
            f"model {self.model}: {held}" + (f"; draft model {self.draft_model}" if self.draft_model else ""),
            f"import {self.import_seconds:.3f} s, load {self.load_seconds:.3f} s; times in seconds, medians of "
            f"{self.repeats} after a warm-up{length}" + ("" if self.complete else "; stopped early"),
        ]


def _times(answer: Answer) -> tuple[str, ...]:
    parts = (f"{answer.parts[part]:.3f}" for part in PARTS)
    return (answer.picture, str(answer.prompt_tokens), *parts, f"{answer.peak_memory / 1e9:.2f} GB")


def _speeds(answer: Answer) -> tuple[str, ...]:
    waits = (f"{answer.first_token:.3f}", f"{answer.from_start:.3f}", f"{answer.tokens_per_second:.1f}")
    share = f"{100 * answer.bandwidth_share:.0f} %"
    return (answer.picture, *waits, f"{answer.bytes_per_token / 1e6:.1f}", share)


def _drafts(drafts: Drafts) -> tuple[str, ...]:
    speeds = (f"{drafts.plain:.1f}", f"{drafts.drafting:.1f}", f"{drafts.drafting / drafts.plain:.2f}")
    right = f"{100 * drafts.accepted_tokens / max(1, drafts.drafted_tokens):.0f} %"
    return (drafts.answer, *speeds, str(drafts.tokens), str(drafts.model_steps), right)


def _again(again: Again) -> tuple[str, ...]:
    times = (f"{again.first:.3f}", f"{again.second:.3f}", f"{again.idle:.3f}")
    return ("a picture", *times, f"{again.idle_seconds:.0f} s")


def _together(batch: Batch) -> tuple[str, ...]:
    speeds = (f"{batch.pictures_per_second:.2f}", f"{batch.tokens_per_second:.1f}")
    return (f"{batch.size} of {batch.picture}", *speeds, f"{batch.peak_memory / 1e9:.2f} GB")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown's table of rows, the first of them headings."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, sizes)) + " |" for row in rows]
    return [lines[0], "| " + " | ".join("-" * size for size in sizes) + " |", *lines[1:]]


def wrapped(text: str, indent: str = "") -> list[str]:
    """The lines of a text, broken at blanks only."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _forms(forms: Constraints) -> tuple[str, ...]:
    times = (f"{1000 * forms.step:.2f}", f"{1000 * forms.masked_step:.2f}", f"{forms.mask_ratio:.3f}")
    return ("JSON schema", *times, str(forms.tokens), str(forms.model_steps), f"{forms.fewer_steps:.1f}")
