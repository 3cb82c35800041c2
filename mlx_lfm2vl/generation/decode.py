"""One prefill and one decode loop, for single prompts, chats and padded batches alike.

After the first token, which is told at once, the loop is one step ahead: the next step is dispatched before the last
token is read, so that the device has work while Python has. Logits are computed for the last position only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..backends.memory import allocations
from ..backends.thread_state import computing
from ..errors import InputError, NotFiniteError, OutOfMemoryError
from ..models.cache import GROWTH_STEP, Cache
from ..models.context import Context
from ..models.lfm2 import Lfm2Model
from ..models.lfm2_vl import Array, Lfm2VlForConditionalGeneration
from ..weights.fit import check_question, largest_pass, number_type
from .finite import not_finite
from .logprobs import Logprobs, RowLogprobs
from .passes import prefill_chunk
from .sampler import BatchedSampler, Sampler
from .sampling import NOT_FINITE
from .vision_cache import VisionCache, encode_views_in_pieces
from .watch import Cancelled, Pieces, completed


@dataclass(frozen=True)
class Prompt:
    """The arrays of one call of the processor, ready to be prefilled.

    `input_ids` (B, L); `attention_mask` (B, L), 1 at real tokens, padded on the left; the pictures' arrays or None, or
    in their place `images`, the image tokens (n, hidden) that were made of them. `answer`: tokens that may follow, for
    which there must be memory, too.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    pixel_values: Array | None = None
    spatial_shapes: Array | None = None
    images: mx.array | None = None
    answer: int = 0

    def __post_init__(self) -> None:
        if self.attention_mask is None:
            return
        mask = np.asarray(self.attention_mask)
        if mask.shape != self.input_ids.shape:
            raise InputError(f"attention_mask has shape {mask.shape}, input_ids {self.input_ids.shape}")
        if not mask[:, -1].all() or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
            raise InputError("attention_mask pads on the right; generation needs padding_side='left'")

    @property
    def padding(self) -> np.ndarray | None:
        """Padding tokens before each row (B,), or None if there are none."""
        if self.attention_mask is None or np.asarray(self.attention_mask).all():
            return None
        return self.input_ids.shape[1] - np.asarray(self.attention_mask).sum(axis=1)


def prefill_in_pieces(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache: Cache,
    *,
    chunk: int | None = None,
    vision_cache: VisionCache | None = None,
    pauses: Collection[int] = (),
    paused: Callable[[int], None] | None = None,
) -> Pieces[mx.array]:
    """Runs the prompt through the model into `cache`; a pass of the vision tower, or a chunk of the text, at a time.

    Pictures are encoded first and their buffers freed. Each chunk of the text is evaluated before the next. A single
    unpadded prompt may continue what the cache holds. Chunks that were run stay in the cache when the work ends early.

    Args:
        model: the model.
        prompt: ids and pictures of all rows.
        cache: what stands before the prompt; takes the prompt's states.
        chunk: tokens of a chunk. None is `passes.prefill_chunk`.
        vision_cache: where encoded pictures are found and kept.
        pauses: a chunk ends where the cache holds one of these numbers of tokens; more may be added meanwhile.
        paused: told of each.

    Returns:
        Logits (B, vocabulary) of the last position. Yields the tokens that the cache holds.

    Raises:
        InputError, OutOfMemoryError, NotFiniteError
    """
    rows, length = prompt.input_ids.shape
    answer = max(0, min(prompt.answer, model.config.text_config.max_position_embeddings - length))
    check_question(model.config, number_type(model), length, answer, largest_pass(prompt.spatial_shapes), rows)
    padding = prompt.padding
    with allocations(f"a prompt of {length:,} tokens"):
        embedding = _embed(model, prompt, vision_cache)
        del prompt
        embeds = yield from embedding
        end = 0
        while end < length:
            start, before = end, cache.offset
            end = min(start + (chunk or prefill_chunk(model.config.text_config, rows, before)), length)
            end = min((pause - before + start for pause in pauses if 0 < pause - before < end - start), default=end)
            hidden = _run_chunk(model.model.language_model, embeds[:, start:end], padding, cache)
            if end == length:
                break
            mx.eval(cache.arrays)
            clear_outgrown(cache, before)
            if paused is not None and cache.offset in pauses:
                paused(cache.offset)
            yield cache.offset
        logits = model.logits(hidden[:, -1:])[:, 0]
        mx.async_eval(logits, cache.arrays)  # where memory is short, it is here that this shows
        return logits


prefill = completed(prefill_in_pieces)


def _embed(model: Lfm2VlForConditionalGeneration, prompt: Prompt, vision_cache: VisionCache | None) -> Pieces[mx.array]:
    """The embeddings (B, L, hidden) of text and pictures."""
    images = prompt.images
    if prompt.pixel_values is not None:
        if prompt.spatial_shapes is None:
            raise InputError("pixel_values is given without spatial_shapes")
        images = yield from encode_views_in_pieces(model, prompt.pixel_values, prompt.spatial_shapes, vision_cache)
        mx.eval(images)
        mx.clear_cache()  # the tower's buffers are of sizes that the text does not use
    return model.model.embed(prompt.input_ids, images)


def _run_chunk(text_model: Lfm2Model, embeds: mx.array, padding: np.ndarray | None, cache: Cache) -> mx.array:
    """The last hidden state (B, 1, hidden). Raises `Cancelled`, with the cache as it was."""
    begun = cache.checkpoint(detach=False)
    try:
        return text_model(embeds, Context.following(embeds.shape[1], cache.offset, padding), cache, last_only=True)
    except Cancelled:
        cache.rewind(begun)
        raise


def clear_outgrown(cache: Cache, before: int) -> None:
    """Frees what MLX keeps for reuse if the key-value buffers have grown since `before` tokens: the outgrown ones fit
    nothing that comes later."""
    if -(-before // GROWTH_STEP) < -(-cache.offset // GROWTH_STEP):
        mx.clear_cache()


class GenerationBatch:
    """Rows that are being decoded, one step ahead of what was read once the first tokens were."""

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        cache: Cache,
        logits: mx.array,
        sampler: Sampler,
        padding: np.ndarray | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        first: bool = True,
    ):
        """Chooses the tokens behind logits (B, vocabulary). `padding`: tokens of it before each row (B,). `logprobs`:
        whether they are wanted, those of `top_logprobs` likeliest tokens too. `first`: whether the tokens are the
        answers' first, which are told before the step after them is dispatched."""
        self._model, self._cache, self._sampler, self._padding = model, cache, sampler, padding
        self._top: int | None = top_logprobs if logprobs else None
        with allocations("the answer's first token"):
            self._next = self._chosen(logits)
        self._first, self._read = first, False  # `_read`: `_next` was returned, and the step after it not dispatched

    def _chosen(self, logits: mx.array) -> tuple[mx.array, Logprobs | None]:
        tokens = self._sampler(logits)
        logprobs = None if self._top is None else Logprobs.of(logits, tokens, self._top)
        mx.async_eval(tokens, logprobs.arrays if logprobs else [], self._sampler.state)
        return tokens, logprobs

    def _dispatch(self) -> None:
        """Runs the model over the tokens of `_next`, and makes it those that follow them."""
        body, before = self._model.model, self._cache.offset
        embeds = body.language_model.embed(self._next[0][:, None])
        hidden = body.language_model(embeds, Context.following(1, before, self._padding), self._cache)
        logits = self._model.logits(hidden)[:, 0]
        if self._sampler.reads_tokens and not self._read:
            mx.async_eval(logits, self._cache.arrays)  # the device has work while the host reads and looks ahead
            self._accept()
        self._next, self._read = self._chosen(logits), False
        clear_outgrown(self._cache, before)

    def _accept(self) -> None:
        """Tells the sampler the tokens of `_next`."""
        if self._sampler.reads_tokens:
            self._sampler.accept(self._next[0].tolist())  # type: ignore[arg-type]

    @computing
    def step(self, last: bool = False) -> tuple[list[int], list[RowLogprobs] | None]:
        """The next token of every row (`NOT_FINITE` where its logits were not), and its logprobs if wanted.

        Unless it is the first or the `last` step the one after is dispatched first, and the cache holds the tokens
        returned.
        """
        with allocations("the answer's next token"):
            if self._read:
                self._dispatch()
            tokens, logprobs = self._next
            if last or self._first:
                self._accept()
                self._first, self._read = False, True
            else:
                self._dispatch()
            return tokens.tolist(), None if logprobs is None else logprobs.rows()  # type: ignore[return-value]

    def extend(self, other: GenerationBatch) -> None:
        """Goes on with the rows of another, of which nothing was read yet, behind one's own. Columns that are padding
        in all rows are given up. Goes on without them where it raises `OutOfMemoryError`."""
        parts = (self, other)
        if self._read:
            begun = self._cache.checkpoint(detach=False)
            try:
                with allocations("the answer's next token"):
                    self._dispatch()
            except BaseException:
                self._cache.rewind(begun)  # the rows go on from where they were
                raise
        counts = [part._next[0].shape[0] for part in parts]
        paddings = [
            np.zeros(count, np.int64) if part._padding is None else part._padding
            for part, count in zip(parts, counts, strict=True)
        ]
        cuts = [int(padding.min()) for padding in paddings]
        with allocations("the answers side by side"):
            merged = Cache.merge([part._cache for part in parts], cuts)
            mx.eval(merged.arrays)
        moved = [padding + merged.offset - part._cache.offset for part, padding in zip(parts, paddings, strict=True)]
        padding = np.concatenate(moved)
        self._cache, self._padding = merged, padding if padding.any() else None
        self._sampler = BatchedSampler([(part._sampler, count) for part, count in zip(parts, counts, strict=True)])
        self._top = max((part._top for part in parts if part._top is not None), default=None)
        logprobs = Logprobs.merge([part._next[1] for part in parts], counts)
        self._next, self._first = (mx.concatenate([part._next[0] for part in parts]), logprobs), False
        self._evaluate()

    def error(self, row: int) -> NotFiniteError:
        """Why a row's logits were not finite."""
        return not_finite(self._model, self._cache, row)

    def row_cache(self, row: int) -> Cache:
        """The cache of a row, which goes on no longer. Of the only row it is the cache itself."""
        padding = 0 if self._padding is None else int(self._padding[row])
        if self._next[0].shape[0] == 1 and not padding:
            mx.eval(self._cache.arrays)
            return self._cache
        return self._cache.row(row, padding)

    def filter(self, rows: list[int]) -> None:
        """Goes on with these rows only."""
        index = mx.array(rows)
        tokens, logprobs = self._next
        self._next = (tokens[index], None if logprobs is None else logprobs.filter(index))
        self._cache.filter(index)
        self._sampler.filter(rows)
        if self._padding is not None:
            padding = self._padding[rows]
            if (cut := int(padding.min())) >= GROWTH_STEP:  # the longest has left, with most of the columns
                self._cache, padding = Cache.merge([self._cache], [cut]), padding - cut
            self._padding = padding if padding.any() else None
        self._evaluate()

    def _evaluate(self) -> None:
        """Dispatches all that the next step starts from, so that it may run in another thread. Where memory runs out,
        that step will say so."""
        with suppress(OutOfMemoryError), allocations("the answer's next token"):
            tokens, logprobs = self._next
            mx.async_eval(tokens, logprobs.arrays if logprobs else [], self._cache.arrays, self._sampler.state)


def decode(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache: Cache,
    logits: mx.array,
    sampler: Sampler,
    max_tokens: int,
) -> Iterator[list[int]]:
    """Yields the next token of every row, at most `max_tokens` times; the caller stops when it has enough. Raises
    `NotFiniteError`."""
    steps = GenerationBatch(model, cache, logits, sampler, prompt.padding)
    for step in range(max_tokens):
        tokens = steps.step(last=step + 1 == max_tokens)[0]
        if NOT_FINITE in tokens:
            raise steps.error(tokens.index(NOT_FINITE))
        yield tokens
