"""One row that runs: its prompt, its options, its text, and what it has generated so far."""

from __future__ import annotations

import time
from collections.abc import Collection
from collections.abc import Sequence as List

import mlx.core as mx
import numpy as np

from ..constraints.matcher import Matcher
from ..errors import NotFiniteError, OptionError
from ..processing.tokenizer import Tokenizer
from .detokenizer import Detokenizer
from .logits_process import RowState
from .logprobs import RowLogprobs
from .prompt_entry import Recorder, Source
from .request import EncodedPrompt
from .response import FinishReason, GenerationResponse, Statistics, TopLogprob
from .speculation import Speculation


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
        rejoins: has left the batch to run tokens that its grammar forces.
        cancelled: to be ended at the next step.
        speculation: its drafts, if it has any.
        drafter: what reads along to propose them, if anything does.
        matcher: where the answer stands in its grammar, if it has one.
        steps: runs of the model for the answer.
        undrafted: those that had no draft since drafts cost more time than they save.
    """

    def __init__(
        self,
        id: int,
        prompt: EncodedPrompt,
        tokenizer: Tokenizer,
        ends: List[int],
        limit: int,
        started: float,
        speculation: Speculation | None = None,
    ):
        self.id, self.prompt, self.ids, self.options = id, prompt, prompt.ids, prompt.options
        self.ends, self.limit, self.started = ends, limit, started
        self._tokenizer = tokenizer
        self.detokenizer = Detokenizer(tokenizer, prompt.options, ends)
        self.generated: list[int] = []
        self.prefilled = self.cached = 0
        self.source: Source | None = None
        self.points: dict[int, bool] = {}
        self.recorder: Recorder | None = None  # of what others may begin with
        self.state: RowState | None = None  # where the host has a part in its logits
        self.matcher: Matcher | None = None
        self.encoded = self.alone = self.rejoins = self.cancelled = False
        self._first = 0.0  # seconds until the first token
        self._tokens: list[int] = []  # those not yet in a response
        self._logprobs: list[RowLogprobs] = []
        self.steps = self.undrafted = 0
        self.speculation = speculation
        self.drafter = None if speculation is None else speculation.drafter

    @property
    def tokens(self) -> np.ndarray:
        """Prompt and answer so far, (n,)."""
        return np.concatenate([self.ids, np.array(self.generated, self.ids.dtype)])

    @property
    def known(self) -> int:
        """Tokens that need no run, since `source` holds their states."""
        return 0 if self.source is None else self.source[1].offset

    def begin_state(self) -> None:
        """Makes `state` anew, behind the answer so far."""
        grammar, processors = self.prompt.grammar, self.options.logits_processors
        self.matcher = None if grammar is None else grammar.matcher(self.generated)
        self.state = RowState(processors, self.tokens.tolist(), self.matcher)

    def error(self, not_finite: NotFiniteError) -> Exception:
        """Why the answer cannot go on where no token could be chosen."""
        if self.options.logits_processors:
            return OptionError(f"logits_processors leave no token that is possible, or give NaN; else, {not_finite}")
        return not_finite

    def push_forced(self) -> tuple[str, FinishReason | None]:
        """Takes the tokens that the grammar forces, which the model is still to be run on."""
        assert self.state is not None and self.matcher is not None
        self.steps += 1
        text, reason = "", None
        while self.matcher.forced and reason is None:
            token = self.matcher.forced[0]
            self.state.accept(token)
            more, reason = self.push(token, None)
            text += more
        return text, reason

    def forced(self, matcher: Matcher, least: int) -> bool:
        """Whether its grammar forces at least so many tokens that they can be run together: nobody asks for their
        logprobs or wants to see them one by one."""
        plain = not (self.options.logprobs or self.options.logits_processors)
        return plain and len(matcher.forced) >= least

    def push(self, token: int, logprobs: RowLogprobs | None) -> tuple[str, FinishReason | None]:
        """Takes the next token: the text that it makes certain, and why the answer ends with it, if it does."""
        self.generated.append(token)
        if self.speculation is not None:
            self.speculation.said.append(token)
        self._first = self._first or time.perf_counter() - self.started
        text = self.detokenizer.push(token)
        if token not in self.ends:
            self._tokens.append(token)
            self._logprobs += [] if logprobs is None else [logprobs]
        if self.detokenizer.stopped:
            return text, "stop"
        if self.matcher is not None and self.matcher.stopped:
            return text + self.detokenizer.finish(), "stop"
        if len(self.generated) >= self.limit:
            return text + self.detokenizer.finish(), "length"
        return text, None

    def respond(
        self, text: str, reason: FinishReason | None = None, statistics: Statistics | None = None
    ) -> GenerationResponse:
        """The text, and the tokens since the last response."""
        logprobs = tuple(each.own for each in self._logprobs) if self.options.logprobs else None
        top = tuple(map(self._top, self._logprobs)) if self.options.top_logprobs else None
        row = self.detokenizer
        tools, delta = row.tool_text, row.tool_delta
        row.tool_text = row.tool_delta = ""
        tokens = tuple(self._tokens)
        made = GenerationResponse(text, tokens, reason, statistics, logprobs, tools, top, row.stop_text, delta)
        self._tokens, self._logprobs = [], []
        return made

    def _top(self, logprobs: RowLogprobs) -> tuple[TopLogprob, ...]:
        text = self._tokenizer.backend.decode
        likeliest = logprobs.top[: self.options.top_logprobs]
        return tuple(TopLogprob(id, text([id], skip_special_tokens=False), value) for id, value in likeliest)

    def statistics(self, placeholders: Collection[int]) -> Statistics:
        """The statistics of the row until now."""
        rest, count = time.perf_counter() - self.started - self._first, len(self.generated)
        return Statistics(
            prompt_tokens=len(self.ids),
            cached_tokens=self.cached,
            image_tokens=int(np.count_nonzero(np.isin(self.ids, [*placeholders]))),
            generated_tokens=count,
            time_to_first_token=self._first,
            prompt_tokens_per_second=(len(self.ids) - self.cached) / self._first if self._first else 0.0,
            tokens_per_second=(count - 1) / rest if count > 1 and rest > 0 else 0.0,
            peak_memory=mx.get_peak_memory(),
            model_steps=self.steps,
            undrafted_steps=self.undrafted,
            drafted_tokens=0 if self.speculation is None else self.speculation.drafted,
            accepted_tokens=0 if self.speculation is None else self.speculation.accepted,
        )
