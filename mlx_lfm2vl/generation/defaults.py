"""A checkpoint's word on generation: its end tokens, its recommended sampling, and the room of its context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import GenerationConfig, ModelConfig
from ..constraints.compile import Grammar, compile_grammar
from ..constraints.response_format import ResponseFormat
from ..errors import FEWER_MEDIA, ContextLengthError, OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.tokenizer import Tokenizer
from .options import GenerationOptions


@dataclass(frozen=True)
class ModelSettings:
    """The part of a model that a prompt needs: all but its weights, which a reader of slow pictures must not keep."""

    config: ModelConfig
    generation_config: Any

    @classmethod
    def of(cls, model: Lfm2VlForConditionalGeneration) -> ModelSettings:
        return cls(model.config, getattr(model, "generation_config", None))


Model = Lfm2VlForConditionalGeneration | ModelSettings


def generation_config(model: Model) -> GenerationConfig:
    """The checkpoint's, which `load` attaches; without one, the end tokens of config.json. Raises `ConfigError` for a
    value that was set there and makes no sense."""
    attached = getattr(model, "generation_config", None)
    if attached is None:
        return GenerationConfig(eos_token_ids=model.config.eos_token_ids)
    if isinstance(attached, GenerationConfig):
        return attached
    return GenerationConfig.of(attached)


def resolved(model: Model, options: GenerationOptions | None) -> GenerationOptions:
    """The options with what was left open as the checkpoint, or else the makers' card, recommends. Raises
    `OptionError`."""
    if options is not None and not isinstance(options, GenerationOptions):
        raise OptionError(f"options is {type(options).__name__}, expected GenerationOptions")
    chosen = (options or GenerationOptions()).resolve(generation_config(model).recommended(model.config))
    vocabulary = model.config.text_config.vocab_size
    for token in dict(chosen.logit_bias):
        if token >= vocabulary:
            raise OptionError(f"logit_bias names token {token}, but the model has {vocabulary}")
    return chosen


def grammar_of(model: Model, tokenizer: Tokenizer, form: ResponseFormat) -> Grammar:
    """The grammar of the form that an answer holds to. Raises `ConstraintError`."""
    vocabulary, ends = model.config.text_config.vocab_size, generation_config(model).eos_token_ids
    return compile_grammar(tokenizer, form, vocabulary, ends)


def positions_left(model: Model, length: int, pictures: bool) -> int:
    """New tokens that fit behind a prompt of `length` tokens, with `pictures` or without. Raises `ContextLengthError`
    if there is no room for one."""
    limit = model.config.text_config.max_position_embeddings
    if length >= limit:
        way_out = f"use {FEWER_MEDIA}, or less text"
        way_out = way_out if pictures else "shorten the text"
        raise ContextLengthError(f"the prompt has {length} tokens, but the model has {limit} positions; {way_out}")
    return limit - length
