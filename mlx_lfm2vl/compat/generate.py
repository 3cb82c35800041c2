"""transformers' `generate`: settings, processors and criteria around the package's own prefill and decode."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..backends.memory import wired_limit
from ..errors import InputError, OptionError, did_you_mean
from ..generation.decode import GenerationBatch
from ..generation.options import positions_left
from ..generation.sampler import NOT_FINITE
from ..generation.sampling import gumbel, random_bits
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.outputs import ModelOutput
from . import stopping, tensors
from .generation_config import DEFAULTS, KNOWN, settings, token_ids
from .logits_process import Process, make_processors, make_warpers, normalise
from .prompts import ARGUMENTS, GivenPrompt, take_prompt
from .seed import seed_of_call

DEFAULT_NEW_TOKENS = 20  # transformers', where neither max_new_tokens nor max_length is given
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """`sequences` (B, L + new); `scores` and `logits`, (B, vocabulary) float32 for each new token, after and before
    the processors; `past_key_values`, which hold all tokens but the last."""

    sequences: Any
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    attentions: None = None
    hidden_states: None = None
    past_key_values: Cache | None = None


@dataclass(frozen=True)
class Callbacks:
    """The caller's functions and tokenizer, beside settings and prompt."""

    processors: Sequence[Any] = ()
    criteria: Sequence[Any] = ()
    allowed: Any = None
    streamer: Any = None
    tokenizer: Any = None
    seed: int | None = None


@dataclass
class Selector:
    """A `Sampler` that runs processors over logits, and keeps the ids so far (B, L)."""

    ids: mx.array
    processors: Sequence[Process]
    keys: list[np.random.PCG64] | None = None  # a generator of keys for each row; None is greedy
    checked: bool = True  # whether logits that are not finite are an error
    pad: int = 0
    ended: np.ndarray | None = None  # rows that get `pad`
    scores: list[mx.array] | None = None
    logits: list[mx.array] | None = None
    state: list[mx.array] = field(default_factory=list)
    reads_tokens = False

    def accept(self, tokens: list[int]) -> None:
        """Nothing: tokens are not read."""

    def filter(self, rows: list[int]) -> None:
        raise NotImplementedError("rows of `generate` stay to the end")

    def __call__(self, logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        scores = logits
        for process in self.processors:
            scores = process(self.ids, scores)
        if self.logits is not None:
            self.logits.append(logits)
        if self.scores is not None:
            self.scores.append(scores)
        noisy = scores
        if self.keys is not None:
            bits = np.array([generator.random_raw() for generator in self.keys], np.uint64)
            keys = mx.array(bits.view(np.uint32).reshape(-1, 2))
            noisy = scores + gumbel(random_bits(keys, scores.shape[1]))
        tokens = mx.argmax(noisy, axis=-1).astype(mx.int32)
        if self.checked:
            tokens = mx.where(mx.isfinite(logits).all(axis=-1), tokens, NOT_FINITE)
        if self.ended is not None and self.ended.any():
            tokens = mx.where(mx.array(self.ended), self.pad, tokens)
        if self.processors:
            self.ids = mx.concatenate([self.ids, tokens[:, None].astype(self.ids.dtype)], axis=1)
        self.state = [tokens, self.ids]
        return tokens


def generate(
    model: Lfm2VlForConditionalGeneration,
    inputs: Any,
    given_config: Any,
    keywords: dict[str, Any],
    callbacks: Callbacks,
) -> Any:
    """See `Lfm2VlForConditionalGeneration.generate`. Takes all of `keywords`."""
    own = {name for name in _SAMPLING if keywords.get(name) not in (None, DEFAULTS[name])}
    lengths = {name for name in ("max_length", "max_new_tokens") if keywords.get(name) is not None}
    chosen = settings(model.generation_config, given_config, keywords)
    ends = token_ids("eos_token_id", chosen["eos_token_id"])
    pads = token_ids("pad_token_id", chosen["pad_token_id"])
    bos = token_ids("bos_token_id", chosen["bos_token_id"])
    if pads is not None and len(pads) != 1:
        raise OptionError(f"pad_token_id is {chosen['pad_token_id']!r}, expected one token id")
    inferred = pads[0] if pads is not None and pads[0] not in (ends or ()) else None
    prompt = take_prompt(model, inputs, keywords, bos[0] if bos else None, inferred)
    for name, value in keywords.items():
        if value is not None:
            meant = did_you_mean([name], (*KNOWN, *ARGUMENTS, *model.model.view_arguments))
            raise OptionError(f"generate has no argument {name!r} that this model uses{meant}")
    if own and not chosen["do_sample"]:
        warnings.warn(f"{', '.join(sorted(own))}: without effect unless do_sample=True", stacklevel=3)
    pad = pads[0] if pads is not None else ends[0] if ends else 0
    return _answer(model, prompt, chosen, ends, pad, callbacks, _new_tokens(chosen, prompt, lengths))


def _new_tokens(chosen: dict[str, Any], prompt: GivenPrompt, lengths: set[str]) -> int:
    """How many tokens may follow the prompt."""
    given = prompt.ids.shape[1]
    if not given:  # embeddings alone: the rows begin behind them
        given = prompt.cache.offset + prompt.new
        chosen["min_length"] = max((chosen["min_length"] or 0) - given, 0)
    if chosen["max_new_tokens"] is not None and "max_length" in lengths and "max_new_tokens" not in lengths:
        chosen["max_new_tokens"] = None  # of the model's configuration, and max_length of the call
    if chosen["max_new_tokens"] is not None:
        if not chosen["max_new_tokens"]:
            raise OptionError("max_new_tokens is 0, expected at least 1")
        return chosen["max_new_tokens"]  # type: ignore[no-any-return]
    if chosen["max_length"] is None:
        warnings.warn(
            f"generate ends after {DEFAULT_NEW_TOKENS} tokens, as transformers does; pass max_new_tokens", stacklevel=5
        )
        return DEFAULT_NEW_TOKENS
    if given >= chosen["max_length"]:
        raise InputError(
            f"the prompt has {given} tokens, but max_length is {chosen['max_length']}; pass max_new_tokens instead"
        )
    return chosen["max_length"] - given  # type: ignore[no-any-return]


def _answer(
    model: Lfm2VlForConditionalGeneration,
    prompt: GivenPrompt,
    chosen: dict[str, Any],
    ends: tuple[int, ...] | None,
    pad: int,
    callbacks: Callbacks,
    new: int,
) -> Any:
    repeats, like = chosen["num_return_sequences"], prompt.like
    if repeats == 0:
        raise OptionError("num_return_sequences is 0, expected at least 1")
    repeats = repeats or 1
    if repeats > 1 and not chosen["do_sample"]:
        raise OptionError("num_return_sequences needs do_sample=True; all greedy answers are alike")
    ids = np.repeat(prompt.ids, repeats, axis=0)
    begin, padding = ids.shape[1], prompt.padding
    padding = None if padding is None else np.repeat(padding, repeats)
    vocabulary = model.config.text_config.vocab_size
    if len(ids) > 1:
        token_ids("pad_token_id", pad, vocabulary)  # which rows that have ended go on with
    own_allowed = callbacks.allowed
    allowed = None if own_allowed is None else lambda row, ids: own_allowed(row, tensors.as_kind_of(like, ids))
    processors = make_processors(chosen, (begin, begin + new), vocabulary, ends, padding, allowed)
    processors += [_of_caller(process, like) for process in callbacks.processors]
    if chosen["do_sample"]:
        processors += make_warpers(chosen)
    if chosen["renormalize_logits"]:
        processors.append(normalise)
    seeds = seed_of_call(callbacks.seed).spawn(len(ids)) if chosen["do_sample"] else ()
    keys = [np.random.PCG64(seed) for seed in seeds] or None
    wanted = bool(chosen["return_dict_in_generate"])
    selector = Selector(mx.array(ids), processors, keys, not chosen["remove_invalid_values"], pad)
    selector.scores = [] if wanted and chosen["output_scores"] else None
    selector.logits = [] if wanted and chosen["output_logits"] else None

    def given(kept: list[mx.array] | None) -> tuple[Any, ...] | None:
        return None if kept is None else tensors.as_kind_of(like, tuple(kept))

    criteria: list[stopping.Criterion] = [lambda ids: np.isin(ids[:, -1], ends)] if ends else []
    if chosen["max_time"] is not None:
        criteria.append(stopping.max_time(chosen["max_time"]))
    if chosen["stop_strings"] is not None:
        criteria.append(stopping.stop_strings(chosen["stop_strings"], callbacks.tokenizer))
    if own := callbacks.criteria:
        criteria.append(lambda ids: stopping.ended_rows(own, tensors.of_numpy(like, ids), given(selector.scores)))
    # One token at a time where a function of the caller runs or the cache outlives the call; else one step ahead.
    waits = wanted or prompt.cache.offset > 0 or bool(callbacks.criteria or callbacks.processors)
    waits = waits or any(hasattr(process, "reads_ids") for process in processors)
    ended = np.zeros(len(ids), bool)
    selector.ended = ended if waits and ends else None

    streamer = callbacks.streamer
    with wired_limit():
        if streamer is not None:
            streamer.put(tensors.of_numpy(like, ids))
        limit = min(new, positions_left(model, prompt.cache.offset + prompt.new, prompt.has_pictures))
        logits = prompt.run(model, limit)
        if repeats > 1:
            rows = mx.array(np.repeat(np.arange(len(prompt.ids)), repeats))
            logits = logits[rows]
            prompt.cache.filter(rows)
        steps = GenerationBatch(model, prompt.cache, logits, selector, padding)
        for number in range(limit):
            tokens = np.array(steps.step(last=waits or number + 1 == limit)[0])
            if (tokens == NOT_FINITE).any():
                raise steps.error(int(np.argmax(tokens == NOT_FINITE)))
            tokens = np.where(ended, pad, tokens) if ends else tokens
            ids = np.concatenate([ids, tokens[:, None]], axis=1)
            if streamer is not None:
                streamer.put(tensors.of_numpy(like, tokens.astype(np.int64)))
            for criterion in criteria:
                ended |= criterion(ids)
            if ended.all():
                break
    if waits:
        mx.eval(prompt.cache.arrays, selector.scores or [], selector.logits or [])  # for any thread
    if streamer is not None:
        streamer.end()
    sequences = tensors.of_numpy(like, ids)
    if not wanted:
        return sequences
    cache = prompt.cache if chosen["use_cache"] else None
    return GenerateDecoderOnlyOutput(sequences, given(selector.scores), given(selector.logits), past_key_values=cache)


def _of_caller(process: Any, like: Any) -> Process:
    """A processor of the caller's, for arrays of the caller's kind."""

    def call(ids: mx.array, scores: mx.array) -> mx.array:
        return mx.array(tensors.to_mlx(process(tensors.as_kind_of(like, ids), tensors.as_kind_of(like, scores))))

    return call


def transition_scores(
    sequences: Any, scores: Sequence[Any], beam_indices: Any = None, normalize_logits: bool = False
) -> Any:
    """The score of each token of an answer (B, new), of `generate`'s `sequences` and `scores`; with `normalize_logits`
    its log-probability. Raises `OptionError` for beams."""
    if beam_indices is not None:
        raise OptionError("beam_indices are given, but there are no beams; leave them out")
    stacked = mx.stack([mx.array(tensors.to_mlx(each)) for each in scores], axis=1)
    if normalize_logits:
        stacked = stacked - mx.logsumexp(stacked, axis=-1, keepdims=True)
    ids = mx.array(tensors.to_mlx(sequences))[:, -stacked.shape[1] :, None]
    return tensors.as_kind_of(sequences, mx.take_along_axis(stacked, ids, axis=-1)[..., 0])
