"""How to generate, as one frozen object; and what a checkpoint says of it: its end tokens, its recommended sampling,
the room of its context, its numbers' type."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..config import GenerationConfig, ModelConfig
from ..config.generation import checked
from ..constraints.compile import Grammar, compile_grammar
from ..constraints.response_format import ResponseFormat
from ..errors import FEWER_MEDIA, ContextLengthError, OptionError, short
from ..processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import mlx.core as mx

    from ..models.dspark import DSparkDraftModel
    from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
    from .logits_process import LogitsProcessor
    from .speculation import Draft

MAX_TOKENS = 2**31  # more than any model has positions
MAX_TOP_LOGPROBS = 100
MAX_BIAS = 100  # as in OpenAI's API: such a token is always taken, or never
_NUMBERS: dict[str, tuple[float, float, bool, float | None]] = {  # least, most, whether whole, what None becomes
    "max_tokens": (1, MAX_TOKENS, True, None),
    "temperature": (0, 100, False, None),
    "top_p": (0, 1, False, None),
    "min_p": (0, 1, False, None),
    "top_k": (0, 2**31, True, None),
    "repetition_penalty": (0.01, 100, False, None),
    "seed": (0, 2**64 - 1, True, None),
    "top_logprobs": (0, MAX_TOP_LOGPROBS, True, 0),
    "frequency_penalty": (-2, 2, False, 0.0),
    "presence_penalty": (-2, 2, False, 0.0),
}


@dataclass(frozen=True)
class GenerationOptions:
    """Length, sampling, form and end of one answer. None means: what the checkpoint recommends, else off (greedy).

    `max_tokens`: at most so many new tokens; None is to the end of the model's positions. `temperature`: 0 is greedy.
    `top_k`: sample among the k likeliest (0: off). `top_p`: among the likeliest that together reach this probability
    (1: off, 0: the likeliest alone). `min_p`: among those at least this fraction as likely as the likeliest (0: off).
    `repetition_penalty`: divides positive and multiplies negative logits of tokens seen in prompt or answer (1: off;
    Keskar et al. 2019). `seed`: makes sampling repeatable. `stop`: texts at which the answer ends (a string or several,
    None is none), not part of it; one that is a special token counts as its id. `logprobs`: pieces carry the natural
    logarithm of the probability that the model itself gave each token, before all that is said here. `top_logprobs`:
    pieces carry the same for so many of the likeliest tokens in each place (0: off, else `logprobs` too).
    `response_format`: the form that the answer holds to, a `ResponseFormat` or what `ResponseFormat.of` takes.
    `logit_bias`: what is added to the logit of a token, by its id. `frequency_penalty`, `presence_penalty`: what a
    token's logit loses, c times the first and once the second where it is c > 0 times in the answer; logit - c *
    frequency - (c > 0) * presence (OpenAI's API reference, "Frequency and presence penalties"). `logits_processors`:
    see `LogitsProcessor`. `draft`: proposes tokens that are then computed in one run of the model: "ngram" (what
    followed the last tokens before, in prompt, answer and earlier answers of a batch or an engine), "auto" (the same,
    where the clock says that it pays), what `load_draft` reads (a DSpark drafter, a smaller model of the family), or a
    `Draft`. It changes no token, only how many runs they take.

    The order: processors, bias, repetition penalty, frequency and presence penalty, the form, temperature, top-k,
    top-p, min-p; from the penalty on it is transformers'. Raises `OptionError` naming the option and its range, and
    `ConstraintError` for a form that cannot be held.
    """

    max_tokens: int | None = 512
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    response_format: Any = None  # kept as a ResponseFormat or None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()  # kept as pairs
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logits_processors: tuple[LogitsProcessor, ...] = ()
    draft: Literal["ngram", "auto"] | Draft | DSparkDraftModel | None = None

    def __post_init__(self) -> None:
        for name, (low, high, whole, default) in _NUMBERS.items():
            value: Any = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, default)
                continue
            number: float | None = None
            with suppress(TypeError, OverflowError):
                if not isinstance(value, bool):  # NumPy has numbers of its own, of which plain ones are made
                    number = operator.index(value) if whole else float(value) if isinstance(value, Real) else None
            if number is None or not low <= number <= high:  # NaN is in no range
                kind = f"an integer from {low} to {high}" if whole else f"a number from {low:g} to {high:g}"
                raise OptionError(f"{name} is {value!r}, expected {kind}")
            object.__setattr__(self, name, number)
        given: Any = () if self.stop is None else self.stop
        stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
        if not all(isinstance(text, str) and text for text in stop):
            raise OptionError(f"stop is {self.stop!r}, expected texts that are not empty")
        object.__setattr__(self, "stop", stop)
        if not isinstance(self.logprobs, bool):
            raise OptionError(f"logprobs is {self.logprobs!r}, expected True or False")
        object.__setattr__(self, "logprobs", self.logprobs or self.top_logprobs > 0)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias) if self.logit_bias else ())
        processors: Any = () if self.logits_processors is None else self.logits_processors
        if not isinstance(processors, Iterable) or not all(map(callable, processors := tuple(processors))):
            raise OptionError(f"logits_processors is {short(repr(self.logits_processors))}, expected functions")
        object.__setattr__(self, "logits_processors", processors)
        if not (self.draft is None or self.draft in ("ngram", "auto") or callable(self.draft)):
            raise OptionError(
                f"draft is {short(repr(self.draft))}, "
                'expected "ngram", "auto", a model (load_draft("owner/name") reads one) or a function'
            )
        if self.response_format is not None:
            object.__setattr__(self, "response_format", ResponseFormat.of(self.response_format))

    @classmethod
    def of(cls, options: GenerationOptions | None, named: dict[str, Any]) -> GenerationOptions:
        """`options` with the fields that `named` holds, which are taken from it. Raises `OptionError`."""
        if options is not None and not isinstance(options, cls):
            raise OptionError(f"options is {type(options).__name__}, expected GenerationOptions")
        own = {field.name: named.pop(field.name) for field in fields(cls) if field.name in named}
        return replace(options or cls(), **own) if own or options is None else options

    def resolve(self, config: GenerationConfig) -> GenerationOptions:
        """Fills what was left open from a checkpoint's recommendation.

        A checkpoint that does not say do_sample: true is greedy. An explicit temperature here leaves its other
        recommendations in force.
        """
        temperature = 1.0 if config.do_sample else 0.0
        off = {"temperature": temperature, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "repetition_penalty": 1.0}
        names = off if config.do_sample else ("repetition_penalty",)
        recommended = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{**off, **recommended, **chosen})


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """`logit_bias` as pairs; ids may be texts, as in JSON. Raises `OptionError`."""
    try:
        pairs = [(int(token), bias) for token, bias in (given.items() if isinstance(given, Mapping) else given)]
    except (TypeError, ValueError):
        raise OptionError(f"logit_bias is {given!r}, expected token ids with a number each") from None
    for token, bias in pairs:
        if not isinstance(bias, Real) or isinstance(bias, bool) or not abs(float(bias)) <= MAX_BIAS or token < 0:
            raise OptionError(f"logit_bias of token {token} is {bias!r}, expected from {-MAX_BIAS} to {MAX_BIAS}")
    return tuple((token, float(bias)) for token, bias in pairs)


@dataclass(frozen=True)
class ModelSettings:
    """The part of a model that a prompt needs: all but its weights, which a reader of slow pictures must not keep."""

    config: ModelConfig
    generation_config: Any


_STATED = ("eos_token_id", *(each.name for each in fields(GenerationConfig) if each.name != "eos_token_ids"))
_recommended = lru_cache(maxsize=32)(GenerationConfig.recommended)  # the same for all answers of a model
Model: TypeAlias = "Lfm2VlForConditionalGeneration | ModelSettings"


def generation_config(model: Model) -> GenerationConfig:
    """The checkpoint's, which `load` attaches; without one, the end tokens of config.json. Raises `ConfigError` for a
    value that was set there and makes no sense."""
    attached = getattr(model, "generation_config", None)
    if attached is None:
        return GenerationConfig(eos_token_ids=model.config.eos_token_ids)
    if isinstance(attached, GenerationConfig):
        return attached
    # an object with such attributes, as transformers' is, where arrays count as their numbers
    values: dict[str, Any] = {name: getattr(attached, name, None) for name in _STATED}
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
    hashable = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    try:
        return checked("generation_config", **hashable)
    except TypeError:  # of what is no value of any of them
        return GenerationConfig.from_dict(plain, "generation_config")


def resolved(model: Model, options: GenerationOptions | None) -> GenerationOptions:
    """The options with what was left open as the checkpoint, or else the makers' card, recommends. Raises
    `OptionError`."""
    if options is not None and not isinstance(options, GenerationOptions):
        raise OptionError(f"options is {type(options).__name__}, expected GenerationOptions")
    chosen = (options or GenerationOptions()).resolve(_recommended(generation_config(model), model.config.text_config))
    vocabulary = model.config.text_config.vocab_size
    for token in dict(chosen.logit_bias):
        if token >= vocabulary:
            raise OptionError(f"logit_bias names token {token}, but the model has {vocabulary}")
    return chosen


def grammar_of(model: Model, tokenizer: Tokenizer, options: GenerationOptions) -> Grammar | None:
    """The grammar of the form that an answer holds to, if it does. Raises `ConstraintError`."""
    if options.response_format is None:
        return None
    vocabulary, ends = model.config.text_config.vocab_size, generation_config(model).eos_token_ids
    return compile_grammar(tokenizer, options.response_format, vocabulary, ends)


def number_type(model: Lfm2VlForConditionalGeneration) -> mx.Dtype:
    """The type that a model computes in: that of its last norm."""
    dtype: mx.Dtype = model.model.language_model.embedding_norm.weight.dtype
    return dtype


def positions_left(model: Model, length: int, pictures: bool) -> int:
    """New tokens that fit behind a prompt of `length` tokens, with `pictures` or without. Raises `ContextLengthError`
    if there is no room for one."""
    limit = model.config.text_config.max_position_embeddings
    if length >= limit:
        way_out = f"use {FEWER_MEDIA}, or less text" if pictures else "shorten the text"
        raise ContextLengthError(f"the prompt has {length} tokens, but the model has {limit} positions; {way_out}")
    return limit - length
