"""The cost of a quantisation as numbers: one frozen object, shown as a table, kept as JSON."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import read_json
from ..errors import ConfigError, counted
from ..weights.save import write_json

FILE = "quantization_report.json"
KEPT = 5  # changed answers, in a report
COLUMNS = 80  # of a terminal
SHOWN = 2  # of them, in a model card
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|#~$&]")


@dataclass(frozen=True)
class ModuleError:
    """`error`: Frobenius norm of the change of a module's weight over that of the dense weight. `bits` 0: dense."""

    name: str
    bits: int
    mode: str
    error: float


@dataclass(frozen=True)
class ChangedAnswer:
    """A question whose greedy answers differ, in words; `first_difference` is the index of the first token that does,
    `picture` the name of the file that it is about, None without one."""

    question: str
    picture: str | None
    dense: str
    quantised: str
    first_difference: int


@dataclass(frozen=True)
class QuantizationReport:
    """A quantised model against the dense one, on the dense model's own greedy answers of at most 64 tokens.

    `top1_agreement`: share of answer positions where both find the same token likeliest. `kl_mean`, `kl_p99`: of the
    quantised distribution from the dense one, in nats a position. `perplexity`, `perplexity_dense`: on those answers.
    `identical_32`, `identical_64`: share of questions whose greedy answers are the same for so many tokens, or to their
    end. Sizes in bytes of weight files. `modules`: those that differ. `differing`: how many answers do;
    `answers`: those of them that do so first, `KEPT` at most. `dtype`: what both models computed in ("" in reports that
    do not say). `method`: "gptq" where levels were calibrated, else ""; `calibrated_on`: on how many questions, of the
    same set and not among those measured.
    """

    calibration: str
    questions: int
    positions: int
    top1_agreement: float
    kl_mean: float
    kl_p99: float
    perplexity_dense: float
    perplexity: float
    identical_32: float
    identical_64: float
    bytes_dense: int
    bytes: int
    bits_per_weight: float
    modules: tuple[ModuleError, ...] = ()
    differing: int = 0
    answers: tuple[ChangedAnswer, ...] = ()
    dtype: str = ""
    method: str = ""
    calibrated_on: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, as tables show them."""
        worst = max(self.modules, key=lambda module: module.error, default=None)
        out = [
            ("size", f"{size(self.bytes)} ({size(self.bytes_dense)} before), {self.bits_per_weight:.2f} bits a weight"),
            ("top-1 agreement", f"{self.top1_agreement:.1%}"),
            ("KL divergence, mean", f"{self.kl_mean:.2g} nats"),
            ("KL divergence, 99th percentile", f"{self.kl_p99:.2g} nats"),
            ("perplexity on the dense model's answers", f"{self.perplexity:.3f} ({self.perplexity_dense:.3f} dense)"),
            ("answers identical for 32 tokens", f"{self.identical_32:.0%}"),
            ("answers identical for 64 tokens", f"{self.identical_64:.0%}"),
        ]
        if worst is not None:
            mean = math.fsum(module.error for module in self.modules) / len(self.modules)
            out.append(("weight error, mean of modules", f"{mean:.2%}"))
            out.append(("weight error, worst module", f"{worst.error:.2%} ({worst.name})"))
        computed = f", computed in {self.dtype}" if self.dtype else ""
        where = f"{counted(self.positions, 'token')} of {counted(self.questions, 'answer')} ({self.calibration})"
        out.append(("measured on", where + computed))
        if self.calibrated_on:
            others = counted(self.calibrated_on, "other question")
            out.append(("method", f"{self.method.upper()}, calibrated on {others} of the same set"))
        return out

    def table(self) -> str:
        """For a terminal."""
        width = max(len(label) for label, _ in self.rows())
        lines = []
        for label, value in self.rows():
            fits = max(map(len, value.split())) <= COLUMNS - width - 2  # names of modules may not
            indent = " " * (width + 2 if fits else 4)
            line = f"{label:<{width}}  {value}"
            lines.append(textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_on_hyphens=False))
        return "\n".join(lines)

    def markdown(self) -> str:
        """For a model card."""
        lines = [f"| {label} | {value.replace('|', '/')} |" for label, value in self.rows()]
        return "\n".join(["| against the dense model | |", "| --- | --- |", *lines])

    def changes(self) -> str:
        """The answers that changed, for a terminal; empty if none did, or no words of them are kept."""
        if not self.answers:
            return ""
        blocks = [f"{self._changed()}:"]
        for answer in self.answers:
            about = f"{answer.picture}: " if answer.picture else ""
            texts = (f"  dense      {plain(answer.dense)}", f"  quantised  {plain(answer.quantised)}")
            blocks.append("\n".join([plain(about + answer.question), *texts]))
        return "\n\n".join(blocks)

    def markdown_changes(self) -> str:
        """The first of them for a model card; empty as `changes` is."""
        if not self.answers:
            return ""
        rows = [(answer.question, answer.dense, answer.quantised) for answer in self.answers[:SHOWN]]
        lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
        return "\n".join([f"{self._changed()}:", "", "| question | dense | quantised |", "| --- | --- | --- |", *lines])

    def _changed(self) -> str:
        told = f"{self.differing} of {counted(self.questions, 'answer')} changed within 64 tokens"
        return told if self.differing == 1 else f"{told}; those that change first"

    def write(self, folder: Path) -> Path:
        """Writes `quantization_report.json`."""
        write_json(folder / FILE, asdict(self))
        return folder / FILE

    @classmethod
    def read(cls, folder: Path) -> QuantizationReport:
        """Reads it. Raises `ConfigError`."""
        data = read_json(folder / FILE)
        try:
            modules = tuple(ModuleError(**module) for module in data.get("modules", ()))
            answers = tuple(ChangedAnswer(**answer) for answer in data.get("answers", ()))
            return cls(**{**data, "modules": modules, "answers": answers})
        except TypeError as error:
            raise ConfigError(f"{folder / FILE}: is no quantisation report ({error})") from None


def plain(text: str) -> str:
    """A text on one line of a terminal, without what would steer it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escaped(text: str) -> str:
    """A text as a cell of a Markdown table shows it: no markup, no end of the cell."""
    return "<br>".join(_MARKDOWN.sub(r"\\\g<0>", line) for line in text.strip().splitlines())


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, step in (("GB", 10**9), ("MB", 10**6)):
        if count >= step:
            return f"{count / step:.2f} {unit}"
    return f"{count / 1000:.1f} kB"
