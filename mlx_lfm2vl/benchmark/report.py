"""The result of a benchmark: numbers with their units, as JSON and as a table to paste; and beside an earlier one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.files import parse_json
from ..errors import OptionError, counted, first_line
from .machine import Machine

COLUMNS = 80  # of a terminal
PARTS = ("read", "preprocess", "vision", "prefill")
TIMES = ("picture", "tokens", *PARTS, "peak memory")  # headings
SPEEDS = ("picture", "first token", "from start", "tokens/s", "MB a token", "of bandwidth")
FORMS = ("form", "ms a step", "with a mask", "ratio", "tokens", "model steps", "ratio")
DRAFTS = ("answer", "tokens/s", "with drafts", "ratio", "tokens", "model steps", "right")
AGAIN = ("first token of", "a question", "a second one", "after idling", "idle for")
TOGETHER = ("pictures at once", "pictures/s", "tokens/s", "peak memory")
COMPARISON = ("measured", "before", "now", "ratio")
COMPARED = {  # fields of each part of a report, and what a part is called by
    "answers": ("picture", ("first_token", "tokens_per_second", "peak_memory")),
    "batches": ("size", ("pictures_per_second", "peak_memory")),
    "drafts": ("answer", ("plain", "drafting", "model_steps")),
    "constraints": ("", ("step", "masked_step", "model_steps")),
    "again": ("", ("first", "second", "idle")),
}


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
        for headings, rows in (
            (TIMES, map(_times, self.answers)),
            (SPEEDS, map(_speeds, self.answers)),
            (TOGETHER, map(_together, self.batches)),
            (FORMS, map(_forms, filter(None, [self.constraints]))),
            (DRAFTS, map(_drafts, self.drafts)),
            (AGAIN, map(_again, filter(None, [self.again]))),
        ):
            if shown := list(rows):
                lines += ["", *aligned([headings, *shown])]
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


def _forms(forms: Constraints) -> tuple[str, ...]:
    times = (f"{1000 * forms.step:.2f}", f"{1000 * forms.masked_step:.2f}", f"{forms.masked_step / forms.step:.3f}")
    fewer = f"{forms.tokens / forms.model_steps:.1f}"
    return ("JSON schema", *times, str(forms.tokens), str(forms.model_steps), fewer)


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


def read(file: Path) -> dict[str, Any]:
    """The measurements that `bench --json` wrote. Raises `OptionError` for another file."""
    way = f"mlx-lfm2vl bench --json > {file.name} writes one"
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error}); {way}") from None
    except ValueError as error:
        raise OptionError(f"{file}: is no JSON ({first_line(error)}); {way}") from None
    if (
        not isinstance(data, dict)
        or not {"model", "machine", "answers", "batches"} <= data.keys()
        or not dict(_measured(data))
    ):
        raise OptionError(f"{file}: holds no measurements; {way}")
    return data


def comparison(before: Mapping[str, Any], report: Report) -> list[str]:
    """Lines of a table of what both hold, and of what differs between them beside."""
    now = report.to_dict()
    old, new = dict(_measured(before)), dict(_measured(now))
    shared = [name for name in new if name in old]
    rows = [(name, _shown(name, old[name]), _shown(name, new[name]), _ratio(old[name], new[name])) for name in shared]
    lines = [f"before: {what}" for what in _others(before, now)]
    return [*lines, *([""] if lines else []), *aligned([COMPARISON, *rows])] if rows else [*lines, "nothing is in both"]


def _measured(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of a report by their names."""
    for part, (by, fields) in COMPARED.items():
        found = data.get(part) or ()
        for each in found if isinstance(found, (list, tuple)) else [found]:
            for field in fields:
                value = each.get(field) if isinstance(each, Mapping) else None
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield " ".join(filter(None, (part, str(each.get(by, "")), field.replace("_", " ")))), float(value)


def _others(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Circumstances of the first result that are not those of the second."""
    if before["model"] != now["model"]:
        yield f"model {before['model']}"
    if before.get("draft_model") != now.get("draft_model"):
        yield f"draft model {before.get('draft_model')}"
    machine = before["machine"] if isinstance(before["machine"], Mapping) else {}
    for name in ("name", "cores", "backend", "device_type", "versions"):
        if machine.get(name) != now["machine"][name]:
            yield f"{name.replace('_', ' ')} {machine.get(name)}"


def _shown(name: str, value: float) -> str:
    if name.endswith("memory"):
        return f"{value / 1e9:.3f} GB"
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def _ratio(before: float, now: float) -> str:
    return f"{now / before:.2f}" if before else "-"
