"""From a prompt that is ready to pieces of text, row by row: the one way through prefill, decode and text.

Single answers, chat turns and batches all come through here. A row that has ended leaves the batch, so that the others
do not pay for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..backends.memory import wired
from ..config import GenerationConfig
from ..errors import OptionError, PromptError
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.tokenizer import Tokenizer
from .decode import Decoding
from .options import GenerationOptions
from .recommended import recommended
from .sampling import NOT_FINITE, chooser
from .text import RowText
from .watch import Cancelled, Pieces, Progress, Stop, advance, check_callable


@dataclass(frozen=True)
class Statistics:
    """Counts in tokens, time in seconds, memory in bytes.

    `prompt_tokens` counts the whole prompt, `cached_tokens` those of it that were still known from before.
    `time_to_first_token` runs from the call, so it includes reading and resizing the pictures, vision and prefill (in
    an `Engine` the time until its turn came is left out); `prompt_tokens_per_second` is the new tokens of the prompt
    over that time; `tokens_per_second` counts the tokens after the first. `peak_memory` is MLX's since the call.
    """

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    generated_tokens: int
    time_to_first_token: float
    prompt_tokens_per_second: float
    tokens_per_second: float
    peak_memory: int


@dataclass(frozen=True)
class GenerationPiece:
    """Some text and the tokens behind it, with their `logprobs` if asked for.

    `finish_reason` is None but on the last piece: "stop" (the model ended, or a stop text came), "length" (no tokens or
    positions were left) or "cancelled". The last piece carries the statistics. `tool_text`: tool calls, for
    `parse_tool_calls`, when they are complete (on a last piece, maybe cut off); they are no part of `text`.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    statistics: Statistics | None = None
    logprobs: tuple[float, ...] | None = None
    tool_text: str = ""


class Start(Protocol):
    """What `run` begins with."""

    @property
    def ids(self) -> np.ndarray:
        """The whole prompts (B, L), padded on the left."""

    @property
    def padding(self) -> np.ndarray | None:
        """Padding tokens before each row (B,), or None if there are none."""

    @property
    def cached(self) -> Sequence[int]:
        """Of each row, how many tokens needed no run; known once `begin` has returned."""

    def begin(self, stop: Stop | None, progress: Progress | None) -> Pieces[tuple[Cache, mx.array]]:
        """The cache with the prompts in it, and the logits (B, vocabulary) of their last tokens. Raises `Cancelled`."""


@dataclass(frozen=True)
class Joining:
    """Rows that join others which are being answered: their start, resolved options, and when they were begun; `stop`
    and `progress` until their first token."""

    start: Start
    options: Sequence[GenerationOptions]
    started: Sequence[float]
    stop: Stop | None = None
    progress: Progress | None = None


class _Row:
    """What one row has made so far."""

    def __init__(
        self, start: Start, at: int, tokenizer: Tokenizer, options: GenerationOptions, ends: Sequence[int], began: float
    ):
        gap = 0 if start.padding is None else int(start.padding[at])
        self.start, self.at, self.ids = start, at, start.ids[at][gap:]
        self.began = began
        self.text = RowText(tokenizer, options, ends)
        self.ends, self.limit, self.logprobs = ends, options.max_tokens, options.logprobs
        self.tokens: list[int] = []  # those not yet in a piece
        self.own: list[float] = []
        self.count = 0
        self.first = 0.0

    def piece(self, text: str, reason: str | None = None, statistics: Statistics | None = None) -> GenerationPiece:
        own = tuple(self.own) if self.logprobs else None
        made = GenerationPiece(text, tuple(self.tokens), reason, statistics, own, self.text.take_tool_text())
        self.tokens, self.own = [], []
        return made


@wired
def run(
    model: Lfm2VlForConditionalGeneration,
    tokenizer: Tokenizer,
    start: Start,
    options: Sequence[GenerationOptions],
    *,
    started: Sequence[float],
    stop: Stop | None = None,
    row_stop: Callable[[int], bool] | None = None,
    left: Callable[[int, GenerationPiece], None] | None = None,
    failed: Callable[[int, Exception], None] | None = None,
    joining: Callable[[int], Joining | None] | None = None,
    progress: Progress | None = None,
    chosen: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, GenerationPiece]]:
    """Yields (row, piece) until every row has ended.

    `options` (resolved) and `started` (`time.perf_counter()` when it began): one a row. `chosen` is called with each
    token of a single row. `stop` ends all rows with "cancelled"; with `row_stop` it is asked before the first token
    only, and `row_stop` for each row after each token. `joining` is asked before each token, with the number of rows
    that go on, for more, which are numbered on from those before; while their prompts are run, each piece of them is
    followed by a token of the others. The last piece of a row that `row_stop` ends within such a piece is given to
    `left`, as nothing can be yielded then; without it, that waits for the piece's end. A row whose numbers are not
    finite, or that cannot join, ends with `failed`; without it `NotFiniteError` is raised. Raises `PromptError` and
    `InputError` before the first piece.
    """
    check_callable("stop", stop)
    check_callable("progress", progress)
    ends = generation_config(model).eos_token_ids
    rows: dict[int, _Row] = {}  # that are decoded
    coming: dict[int, _Row] = {}  # whose prompts are run
    steps: Decoding | None = None
    held: list[int] = []  # the rows of `steps`, in its order
    answering = False  # the first have begun
    entered = 0

    def begin(more: Joining) -> Pieces[Decoding]:
        nonlocal entered
        start, entered = more.start, entered + len(more.options)
        for at, (each, began) in enumerate(zip(more.options, more.started, strict=True)):
            row = _Row(start, at, tokenizer, each, ends, began)
            row.limit = min(row.limit, positions_left(model, len(row.ids)))
            coming[entered - len(more.options) + at] = row

        def stopped() -> bool:
            leave()
            return more.stop is not None and more.stop()

        return _begun(model, more if left is None else replace(more, stop=stopped))

    def last(index: int, text: str, reason: str) -> tuple[int, GenerationPiece]:
        row = rows.pop(index) if index in rows else coming.pop(index)
        now = time.perf_counter() - row.began
        rest, known = now - row.first, row.start.cached[row.at]
        statistics = replace(
            prompt_statistics(model, row.ids),
            cached_tokens=known,
            generated_tokens=row.count,
            time_to_first_token=row.first,
            prompt_tokens_per_second=(len(row.ids) - known) / row.first if row.first else 0.0,
            tokens_per_second=(row.count - 1) / rest if row.count > 1 and rest > 0 else 0.0,
        )
        return index, row.piece(text, reason, statistics)

    def leave() -> None:
        """Asks those that are being answered while prompts of others are run."""
        if left is not None and row_stop is not None:
            for index in [index for index in rows if row_stop(index)]:
                left(*last(index, rows[index].text.finish(), "cancelled"))

    def settle() -> None:
        """Goes on with the rows that have not ended."""
        nonlocal steps, held
        if not rows:
            steps = None  # what it holds may be large, and others may be coming
        elif steps is not None and len(rows) < len(held):
            steps.select([held.index(index) for index in rows])
        held = list(rows)

    prompts = begin(Joining(start, options, started, stop, progress))
    del start
    while rows or coming:
        if not coming and joining is not None and (more := joining(len(rows))) is not None:
            prompts = begin(more)
            del more
        if coming:
            try:
                begun = advance(prompts)
                settle()
                if begun is not None:
                    if steps is not None:
                        steps.join(begun)
                    else:
                        steps = begun
                    rows, coming, answering = {**rows, **coming}, {}, True
                    held = list(rows)
                del begun
            except Cancelled:
                for index in list(coming):
                    yield last(index, "", "cancelled")
            except Exception as error:
                if failed is None or not answering:
                    raise
                for index in list(coming):
                    del coming[index]
                    failed(index, error)
        settle()
        if steps is None:
            continue
        final = all(row.count + 1 >= row.limit for row in rows.values())
        tokens, logprobs = steps.step(last=final)
        for at, (index, token) in enumerate(zip(held, tokens, strict=True)):
            row = rows[index]
            if token == NOT_FINITE:
                if failed is None:
                    raise steps.error(at)
                del rows[index]
                failed(index, steps.error(at))
                continue
            row.count += 1
            row.first = row.first or time.perf_counter() - row.began
            if chosen is not None:
                chosen(token)
            text = row.text.push(token)
            if token not in row.ends:
                row.tokens.append(token)
                row.own += [logprobs[at]] if logprobs else []
            if row.text.stopped:
                yield last(index, text, "stop")
            elif row.count >= row.limit:
                yield last(index, text + row.text.finish(), "length")
            elif text or row.text.tool_text:
                yield index, row.piece(text)
        everything = stop is not None and row_stop is None and stop()
        for index in list(rows):
            if everything or (row_stop is not None and row_stop(index)):
                yield last(index, rows[index].text.finish(), "cancelled")
        settle()


def _begun(model: Lfm2VlForConditionalGeneration, more: Joining) -> Pieces[Decoding]:
    """Runs the prompts, so that their rows can be decoded."""
    start, choose = more.start, chooser(more.options)
    choose.observe(mx.array(_without_padding(start.ids, start.padding)), model.config.text_config.vocab_size)
    cache, logits = yield from start.begin(more.stop, more.progress)
    return Decoding(model, cache, logits, choose, start.padding, any(each.logprobs for each in more.options))


def prompt_statistics(model: Lfm2VlForConditionalGeneration, ids: np.ndarray) -> Statistics:
    """Those of a prompt (n,) that nothing was answered to."""
    images = int(np.count_nonzero(ids == model.config.image_token_id))
    return Statistics(len(ids), 0, images, 0, 0.0, 0.0, 0.0, mx.get_peak_memory())


def _without_padding(ids: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """Ids (B, L) whose padding repeats the row's last token, so that padding does not count as said."""
    if padding is None:
        return ids
    return np.where(np.arange(ids.shape[1]) < padding[:, None], ids[:, -1:], ids)


def generation_config(model: Lfm2VlForConditionalGeneration) -> GenerationConfig:
    """The checkpoint's, which `load` attaches; without one, the end tokens of config.json."""
    attached = getattr(model, "generation_config", None)
    return attached if attached is not None else GenerationConfig(eos_token_ids=model.config.eos_token_ids)


def resolved(model: Lfm2VlForConditionalGeneration, options: GenerationOptions | None) -> GenerationOptions:
    """The options with what was left open as the checkpoint, or else the makers' card, recommends. Raises
    `OptionError`."""
    if options is not None and not isinstance(options, GenerationOptions):
        raise OptionError(f"options is {type(options).__name__}, expected GenerationOptions")
    return (options or GenerationOptions()).resolve(recommended(model.config, generation_config(model)))


def positions_left(model: Lfm2VlForConditionalGeneration, length: int) -> int:
    """New tokens that fit behind a prompt of `length`. Raises `PromptError` if there is no room for one."""
    limit = model.config.text_config.max_position_embeddings
    if length >= limit:
        raise PromptError(
            f"the prompt has {length} tokens, but the model has {limit} positions; use fewer or smaller pictures"
        )
    return limit - length
