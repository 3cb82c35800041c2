"""The results of a request: pieces of text with their tokens, the whole answer, and what it took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")
FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Statistics:
    """Counts in tokens, time in seconds, memory in bytes.

    `prompt_tokens` counts the whole prompt, `cached_tokens` those of it that were still known from before.
    `time_to_first_token` runs from the call, so it includes reading and resizing the pictures, vision and prefill (in
    an `Engine` the time until its turn came is left out); `prompt_tokens_per_second` is the new tokens of the prompt
    over that time; `tokens_per_second` counts the tokens after the first. `peak_memory` is MLX's since the call.
    `model_steps` are the runs of the model that the answer took: one a token, but for tokens that a `response_format`
    forces, which are run together, and those of drafts. `drafted_tokens` were proposed (`GenerationOptions.draft`) and
    run, `accepted_tokens` of them were those that the model chooses. `undrafted_steps` are the runs for which no draft
    was asked, since drafts had cost more time than they saved.
    """

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    generated_tokens: int
    time_to_first_token: float
    prompt_tokens_per_second: float
    tokens_per_second: float
    peak_memory: int
    model_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    undrafted_steps: int = 0


NOTHING = Statistics(0, 0, 0, 0, 0.0, 0.0, 0.0, 0)


class TopLogprob(NamedTuple):
    """A token that was likely: its id, its text by itself (bytes that are no character are U+FFFD), and the natural
    logarithm of the probability that the model gave it."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class GenerationResponse:
    """Some text and the tokens behind it, with their `logprobs` if asked for, and the likeliest tokens in the place of
    each, these first (`top_logprobs`).

    `finish_reason` is None but on the last response: "stop" (the model ended, or a stop text came), "length" (no tokens
    or positions were left), "cancelled", or "deadline" (of a request of an engine). The last response carries the
    statistics. `tool_text`: tool calls, for `parse_tool_calls`, when they are complete (on a last response, maybe cut
    off); they are no part of `text`. `tool_delta`: what these tokens add to the calls, while they are written.
    `stop_text`: the one of the options' stop texts that ended the answer, if one did.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    statistics: Statistics | None = None
    logprobs: tuple[float, ...] | None = None
    tool_text: str = ""
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None
    stop_text: str | None = None
    tool_delta: str = ""


@dataclass(frozen=True)
class Completion:
    """A whole answer, or the error in its place.

    `finish_reason`: "stop", "length", "cancelled" or "deadline" (then the text is what came until then), or "error"
    (then `error` says what is wrong, and nothing was answered). `tool_text`, `logprobs`, `top_logprobs` as in
    `GenerationResponse`.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | Literal["error"] = "error"
    statistics: Statistics | None = None
    tool_text: str = ""
    error: Exception | None = None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None

    @classmethod
    def of(cls, responses: Sequence[GenerationResponse]) -> Completion:
        """The whole of all responses of a request; the last one carries the reason."""
        last = responses[-1]
        return cls(
            "".join(response.text for response in responses),
            tuple(token for response in responses for token in response.tokens),
            last.finish_reason or "error",
            last.statistics,
            "".join(response.tool_text for response in responses),
            logprobs=_joined(response.logprobs for response in responses),
            top_logprobs=_joined(response.top_logprobs for response in responses),
        )


def _joined(parts: Iterable[tuple[T, ...] | None]) -> tuple[T, ...] | None:
    """The parts in a row; None if that is what they are."""
    known = [part for part in parts if part is not None]
    return tuple(item for part in known for item in part) if known else None
