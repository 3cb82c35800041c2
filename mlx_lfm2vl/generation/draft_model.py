"""Drafts by a smaller model of the family, and the choice of what proposes an answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..backends.thread_state import computing
from ..config import ModelConfig
from ..errors import OptionError
from ..models.cache import Cache, CacheCheckpoint
from ..models.dspark import DSparkDraftModel
from ..models.layers import Context
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .chunked_prefill import Prompt, encode_views_in_pieces, prefill_in_pieces
from .ngrams import NgramDraft, Ngrams
from .options import generation_config
from .prompt_cache import PromptCache
from .prompt_entry import PictureSpan, Recorder, Source, checkpoint_places
from .request import EncodedPrompt
from .speculation import BlockSpeculation, Speculation
from .watch import Pieces, calling, completed

KEPT_BYTES = 2**28  # of the states of earlier prompts


class DraftModel:
    """A `Draft` by another model: the tokens that are likeliest to it. It sees the pictures, too.

    One is for one answer at a time; each answer gets a copy, with states of its own beside the same weights. The prompt
    is run through it behind the model's own, before the first token (`prefill`). Copies keep the states of their last
    prompts in common, so that of a conversation's next prompt only what is new is run.

    Args:
        model: smaller than the one that answers, with the same tokens.
    """

    timed = True

    def __init__(self, model: Lfm2VlForConditionalGeneration):
        self._model = model
        self._prompts = PromptCache(KEPT_BYTES)
        self._spans: tuple[PictureSpan, ...] | None = None  # None: of a prompt that is not kept
        self._source: Source | None = None
        self._pictures: list[tuple[np.ndarray, np.ndarray]] = []
        self._known: tuple[Cache, CacheCheckpoint, mx.array] | None = None  # with logits (1, vocabulary) behind it

    @classmethod
    def of(cls, model: Lfm2VlForConditionalGeneration) -> DraftModel:
        """One that has its earlier prompts in common with all others of this model."""
        made = cls(model)
        if model.draft_prompts is None:
            model.draft_prompts = made._prompts
        made._prompts = model.draft_prompts
        return made

    def copy(self) -> DraftModel:
        """One without states, with the same model and the same earlier prompts."""
        made = DraftModel(self._model)
        made._prompts = self._prompts
        return made

    def check(self, config: ModelConfig) -> None:
        """Raises `OptionError` where the model that answers has other tokens or pictures."""
        own, its = (
            {"vocab_size": of.text_config.vocab_size, **of.shared_numbers()} for of in (self._model.config, config)
        )
        for name, number in own.items():
            if number != its.get(name, number):
                raise OptionError(
                    f"the draft model has {name} {number}, the model {its[name]}; use one of the same tokens"
                )
        if own.keys() != its.keys():
            raise OptionError("the draft model is of another family than the model; use one of the same")

    def begin(self, config: ModelConfig, prompt: EncodedPrompt) -> None:
        """Looks for the beginning of a prompt, and holds the pictures behind it until they are encoded. Raises as
        `check`."""
        self.check(config)
        self._prompts.bind(self._model)
        self._spans, self._source = prompt.spans, self._prompts.find(prompt.ids, prompt.spans)
        known = 0 if self._source is None else self._source[1].offset
        pairs = zip(prompt.places, prompt.pictures, strict=True)
        self._pictures = [(each.pixels, each.spatial_shapes) for (start, _), each in pairs if start >= known]

    def prefill(self, tokens: Sequence[int]) -> Pieces[None]:
        """Runs a prompt, a piece at a time, unless one was run. Raises `InputError`, `OutOfMemoryError`,
        `NotFiniteError`."""
        if self._known is not None or len(tokens) >= self._model.config.text_config.max_position_embeddings:
            return
        ids, spans = np.array(tokens, np.int64), self._spans or ()
        source, self._source = self._source, None  # its arrays are the prompt cache's
        cache = self._model.make_cache() if source is None else source[0].at(source[1])
        logits = None if source is None else source[1].logits
        if (known := cache.offset) < len(ids):
            views = []
            for picture in self._pictures:
                views.append((yield from encode_views_in_pieces(self._model, *picture)))
            recorder = Recorder(ids, spans, source)
            prompt = Prompt(ids[None, known:], images=mx.concatenate(views) if views else None)
            places = checkpoint_places(ids, spans, generation_config(self._model).eos_token_ids, known)
            logits = yield from prefill_in_pieces(
                self._model, prompt, cache, pauses=places, paused=lambda _: recorder.take(cache)
            )
            mx.eval(logits, cache.arrays)
            recorder.take(cache, logits)
            if self._spans is not None:
                self._prompts.put(recorder.entry(cache.copy()))
        assert logits is not None
        self._known, self._pictures = (cache, cache.checkpoint(detach=False), logits), []

    @computing
    def __call__(self, tokens: Sequence[int], count: int) -> list[int]:
        if len(tokens) + count > self._model.config.text_config.max_position_embeddings:
            return []
        if self._known is None:
            completed(self.prefill)(tokens)
        assert self._known is not None
        cache, point, logits = self._known
        cache.rewind(point)
        if new := list(tokens[point.offset :]):
            logits = self._run(mx.array([new]), cache)
        point = cache.checkpoint(detach=False)
        self._known = cache, point, logits
        draft: list[mx.array] = []
        for number in range(count):
            draft.append(mx.argmax(logits, axis=-1))
            if number + 1 < count:
                logits = self._run(draft[-1][:, None], cache)
        made = mx.concatenate(draft)
        mx.eval(made, self._known[2], point.states, cache.arrays)  # any thread may go on from there
        return made.tolist()  # type: ignore[return-value]

    def _run(self, tokens: mx.array, cache: Cache) -> mx.array:
        """Logits (1, vocabulary) behind tokens (1, L)."""
        body = self._model.model.language_model
        context = Context.following(tokens.shape[1], cache.offset)
        return self._model.logits(body(body.embed(tokens), context, cache, last_only=True))[:, 0]


def make_speculation(config: ModelConfig, prompt: EncodedPrompt, earlier: Ngrams, limit: int) -> Speculation:
    """The drafts of an answer, as `GenerationOptions.draft` says.

    Args:
        config: of the model that answers.
        prompt: with the options of the answer, of which `draft` is not None.
        earlier: answers to similar questions.
        limit: tokens of the answer, at most.

    Raises:
        OptionError: for a draft model that does not fit, and for a draft that raises as it is copied.
    """
    draft, ids = prompt.options.draft, prompt.ids.tolist()
    assert draft is not None
    if isinstance(draft, str):
        return Speculation(NgramDraft(earlier), ids, limit, timed=draft == "auto")
    if isinstance(draft, DSparkDraftModel):
        check_draft(config, draft)
        return BlockSpeculation(draft, ids, limit)
    if isinstance(draft, Lfm2VlForConditionalGeneration):
        draft = DraftModel.of(draft)
    with calling("draft", draft):
        own = draft.copy() if hasattr(draft, "copy") else draft
    if isinstance(own, DraftModel):
        own.begin(config, prompt)
    return Speculation(own, ids, limit, timed=bool(getattr(own, "timed", False)))


def check_draft(config: ModelConfig, draft: object) -> None:
    """Raises `OptionError` where a drafter or a draft model is for other models."""
    if isinstance(draft, DraftModel):
        draft.check(config)
    if not isinstance(draft, DSparkDraftModel):
        return
    own, text = draft.config, config.text_config
    for name, wanted, there in (
        ("hidden_size", own.hidden_size, text.hidden_size),
        ("vocab_size", own.vocab_size, text.vocab_size),
        ("num_target_layers", own.num_target_layers, text.num_hidden_layers),
    ):
        if wanted != there:
            raise OptionError(f"the drafter is for a model with {name} {wanted}, this model has {there}")
