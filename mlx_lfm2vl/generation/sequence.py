"""One row that runs: its prompt, its options, its text, and what it has generated so far."""

from __future__ import annotations

import time
from collections.abc import Sequence as List
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..processing.tokenizer import Tokenizer
from .detokenizer import Detokenizer
from .prompt_entry import Checkpoint, Entry, Recorder
from .request import EncodedPrompt
from .response import FinishReason, GenerationResponse, Statistics


class Sequence:
    """A row of a `Scheduler`.

    Attributes:
        ids: the prompt, (n,).
        generated: every token so far, the end token too.
        prefilled: tokens of the prompt whose states are known.
        cached: tokens of the prompt that needed no run.
        source: what the prompt continues, if its beginning is known.
        points: lengths of the prompt at which checkpoints are taken, and whether others begin there.
        encoded: whether its pictures are.
        alone: to be prefilled with no other, since it failed beside others.
        cancelled: to be ended at the next step.
    """

    def __init__(
        self, id: int, prompt: EncodedPrompt, tokenizer: Tokenizer, ends: List[int], limit: int, started: float
    ):
        self.id, self.prompt, self.ids, self.options = id, prompt, prompt.ids, prompt.options
        self.ends, self.limit, self.started = ends, limit, started
        self.detokenizer = Detokenizer(tokenizer, prompt.options, ends)
        self.generated: list[int] = []
        self.prefilled = self.cached = 0
        self.source: tuple[Entry, Checkpoint] | None = None
        self.points: dict[int, bool] = {}
        self.recorder: Recorder | None = None  # of what others may begin with
        self.encoded = self.alone = self.cancelled = False
        self._first = 0.0  # seconds until the first token
        self._tokens: list[int] = []  # those not yet in a response
        self._logprobs: list[float] = []

    @property
    def tokens(self) -> np.ndarray:
        """Prompt and answer so far, (n,)."""
        return np.concatenate([self.ids, np.array(self.generated, self.ids.dtype)])

    @property
    def known(self) -> int:
        """Tokens that need no run, since `source` holds their states."""
        return 0 if self.source is None else self.source[1].offset

    def push(self, token: int, logprob: float | None) -> str:
        """Takes the next token, and gives the text that it makes certain."""
        self.generated.append(token)
        self._first = self._first or time.perf_counter() - self.started
        text = self.detokenizer.push(token)
        if token not in self.ends:
            self._tokens.append(token)
            self._logprobs += [] if logprob is None else [logprob]
        return text

    def respond(
        self, text: str, reason: FinishReason | None = None, statistics: Statistics | None = None
    ) -> GenerationResponse:
        """The text, and the tokens since the last response."""
        logprobs = tuple(self._logprobs) if self.options.logprobs else None
        made = GenerationResponse(
            text, tuple(self._tokens), reason, statistics, logprobs, self.detokenizer.take_tool_text()
        )
        self._tokens, self._logprobs = [], []
        return made

    def statistics(self, image_token: int) -> Statistics:
        """The statistics of the row until now."""
        rest, count = time.perf_counter() - self.started - self._first, len(self.generated)
        return replace(
            prompt_statistics(self.ids, image_token),
            cached_tokens=self.cached,
            generated_tokens=count,
            time_to_first_token=self._first,
            prompt_tokens_per_second=(len(self.ids) - self.cached) / self._first if self._first else 0.0,
            tokens_per_second=(count - 1) / rest if count > 1 and rest > 0 else 0.0,
        )


def prompt_statistics(ids: np.ndarray, image_token: int) -> Statistics:
    """The statistics of a prompt (n,) that nothing was answered to."""
    images = int(np.count_nonzero(ids == image_token))
    return Statistics(len(ids), 0, images, 0, 0.0, 0.0, 0.0, mx.get_peak_memory())
