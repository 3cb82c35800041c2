"""The result of a benchmark: numbers with their units, as JSON and as a table to paste."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .machine import Machine

PARTS = ("read", "preprocess", "vision", "prefill")


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
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)

    def table(self) -> str:
        """Markdown that can be read as it is."""
        lines = [*self._heading(), ""]
        if self.answers:
            lines += [
                "| picture | prompt tokens | read | preprocess | vision | prefill | first token | from start "
                "| tokens/s | MB a token | of bandwidth | peak memory |",
                "|" + " --- |" * 12,
            ]
            lines += [self._row(answer) for answer in self.answers]
        if self.batches:
            lines += ["", "| pictures at once | pictures/s | tokens/s | peak memory |", "|" + " --- |" * 4]
        for batch in self.batches:
            lines.append(
                f"| {batch.size} of {batch.picture} | {batch.pictures_per_second:.2f} "
                f"| {batch.tokens_per_second:.1f} | {batch.peak_memory / 1e9:.2f} GB |"
            )
        if (forms := self.constraints) is not None:
            lines += [
                "",
                "| form | ms a step | ms with a mask | ratio | tokens of six fields | model steps | ratio |",
                "|" + " --- |" * 7,
                f"| JSON schema | {1000 * forms.step:.2f} | {1000 * forms.masked_step:.2f} | {forms.mask_ratio:.3f} "
                f"| {forms.tokens} | {forms.model_steps} | {forms.fewer_steps:.1f} |",
            ]
        return "\n".join(lines)

    def _heading(self) -> list[str]:
        machine = self.machine
        device = (
            f" on {machine.device}" if machine.device_type != "cpu" else f", {machine.blas}" if machine.blas else ""
        )
        held = ", ".join(f"{size / 1e9:.3f} GB {dtype}" for dtype, size in self.weights.items())
        versions = f"mlx-lfm2vl {machine.versions['mlx-lfm2vl']}, MLX {machine.versions.get('mlx', '?')}"
        tokens = max((answer.generated_tokens for answer in self.answers), default=0)
        counted = f", {tokens} tokens an answer" if tokens else ""
        return [
            f"{versions} {machine.device_type}{device}, backend {machine.backend}, Python {machine.python}",
            f"{machine.name}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.system}; "
            f"memory {self.bandwidth / 1e9:.1f} GB/s",
            f"model {self.model}: {held}",
            f"import {self.import_seconds:.3f} s, load {self.load_seconds:.3f} s; times in seconds, medians of "
            f"{self.repeats} after a warm-up{counted}" + ("" if self.complete else "; stopped early"),
        ]

    @staticmethod
    def _row(answer: Answer) -> str:
        parts = " | ".join(f"{answer.parts[part]:.3f}" for part in PARTS)
        return (
            f"| {answer.picture} | {answer.prompt_tokens} | {parts} | {answer.first_token:.3f} "
            f"| {answer.from_start:.3f} | {answer.tokens_per_second:.1f} | {answer.bytes_per_token / 1e6:.1f} "
            f"| {100 * answer.bandwidth_share:.0f} % | {answer.peak_memory / 1e9:.2f} GB |"
        )
