"""Ranks that share a model in step: rank 0 says what its schedulers do, and the others do the same.

A `Scheduler` has no clock and no threads, so the same prompts, cancels and steps make the same calls of the model, in
the same order, which MLX's operations between ranks need. No beginnings and no pictures are kept from answer to answer:
what is kept would have to be the same in all ranks.
"""

from __future__ import annotations

import base64
import itertools
import secrets
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ..backends.memory import WiredLimit
from ..constraints.response_format import ResponseFormat
from ..distributed.links import Came, Link
from ..errors import DistributedError, OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..processing.tokenizer import Tokenizer
from .defaults import grammar_of
from .options import GenerationOptions
from .request import EncodedPicture, EncodedPrompt
from .scheduler import Output, Scheduler
from .sequence import Sequence

NO_JSON = ("response_format", "logits_processors")
PLAIN = [field.name for field in fields(GenerationOptions) if field.name not in NO_JSON]


class Lead:
    """Rank 0's word to the others. Used by the thread that drives the schedulers."""

    def __init__(self, links: Iterable[Link]):
        self._links = list(links)
        self._numbers = itertools.count()
        self._schedulers: weakref.WeakValueDictionary[int, Scheduler] = weakref.WeakValueDictionary()

    def begin(self, scheduler: Scheduler) -> int:
        """Begins a scheduler in all ranks, which drop those that rank 0 has dropped; returns its number."""
        number = next(self._numbers)
        self._schedulers[number] = scheduler
        self._say({"scheduler": number, "kept": [*self._schedulers]})
        return number

    def add(self, number: int, prompt: EncodedPrompt) -> None:
        """Adds a prompt to a scheduler of the others."""
        self._say({"add": number, "prompt": _as_json(prompt)})

    def step(self, number: int, cancelled: list[int]) -> None:
        """Lets the others cancel these rows, and step. Raises `DistributedError` where one is lost."""
        self._say({"step": number, "cancel": cancelled})

    def check(self) -> None:
        """Raises `DistributedError` where a rank is lost."""
        if lost := [link.rank for link in self._links if link.lost.is_set()]:
            raise DistributedError(f"rank {lost[0]} is lost, and its part of the model; start the command again")

    def close(self) -> None:
        """Lets the others go."""
        for link in self._links:
            link.send({"bye": True})
            link.close()

    def _say(self, message: Mapping[str, Any]) -> None:
        for link in self._links:
            link.send(message)
        self.check()


class LeadingScheduler(Scheduler):
    """A scheduler of rank 0, whose steps the others do, too."""

    def __init__(self, model: Lfm2VlForConditionalGeneration, tokenizer: Tokenizer):
        super().__init__(model, tokenizer)
        self._lead: Lead = model.lead
        self._number = self._lead.begin(self)
        self._to_cancel: deque[int] = deque()  # at the next step

    def add(self, prompt: EncodedPrompt, *, started: float) -> Sequence:
        """As `Scheduler.add`. Raises `OptionError` for options that are Python's own, too."""
        prompt = _prepared(prompt)
        row = super().add(prompt, started=started)
        self._lead.add(self._number, prompt)
        return row

    def cancel(self, id: int) -> None:
        """As `Scheduler.cancel`."""
        self._to_cancel.append(id)

    def cancel_all(self) -> None:
        """As `Scheduler.cancel_all`."""
        self._to_cancel.extend(list(self._rows))

    def step(self) -> list[Output]:
        """As `Scheduler.step`. Raises `DistributedError` where a rank is lost."""
        cancelled = [self._to_cancel.popleft() for _ in range(len(self._to_cancel))]
        self._lead.step(self._number, cancelled)
        for id in cancelled:
            super().cancel(id)
        outputs = super().step()
        if any(isinstance(item, Exception) for _, item in outputs):
            self._lead.check()
        return outputs


def follow(model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor, came: Came) -> None:
    """Does what rank 0 says, until it lets this rank go. Raises `DistributedError` where it is lost."""
    schedulers: dict[int, Scheduler] = {}
    with WiredLimit():
        while (said := came.get()[1]) is not None:
            if "bye" in said:
                return
            _do(said, schedulers, model, processor)
    raise DistributedError("rank 0 is lost; start the command again")


def _do(
    said: dict[str, Any],
    schedulers: dict[int, Scheduler],
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
) -> None:
    if "scheduler" in said:
        for number in schedulers.keys() - said["kept"]:
            del schedulers[number]
        schedulers[said["scheduler"]] = Scheduler(model, processor.tokenizer)
    elif "add" in said:
        prompt = _from_json(said["prompt"])
        if (form := prompt.options.response_format) is not None:
            prompt = replace(prompt, grammar=grammar_of(model, processor.tokenizer, form))
        schedulers[said["add"]].add(prompt, started=0.0)
    else:
        for id in said["cancel"]:
            schedulers[said["step"]].cancel(id)
        schedulers[said["step"]].step()


def _prepared(prompt: EncodedPrompt) -> EncodedPrompt:
    """The prompt as all ranks run it: with a seed. Raises `OptionError` for options that are Python's own."""
    options = prompt.options
    if options.logits_processors or options.draft not in (None, "ngram"):
        raise OptionError("a model that several ranks share takes no functions and draft models as options")
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(63))
    return replace(prompt, options=options)


def _as_json(prompt: EncodedPrompt) -> dict[str, Any]:
    options = {name: getattr(prompt.options, name) for name in PLAIN}
    if (form := prompt.options.response_format) is not None:
        options["response_format"] = [form.kind, form.value, form.separators]
    pictures = [[_packed(picture.spatial_shapes), _packed(picture.pixels)] for picture in prompt.pictures]
    return {"ids": prompt.ids.tolist(), "options": options, "pictures": pictures, "places": prompt.places}


def _from_json(data: dict[str, Any]) -> EncodedPrompt:
    options = dict(data["options"])
    if (form := options.pop("response_format", None)) is not None:
        kind, value, separators = form
        value = tuple(value) if isinstance(value, list) else value
        options["response_format"] = ResponseFormat(kind, value, tuple(separators))
    pictures = tuple(_picture(*map(_unpacked, pair)) for pair in data["pictures"])
    places = tuple((start, end) for start, end in data["places"])
    return EncodedPrompt(np.array(data["ids"], np.int32), GenerationOptions(**options), pictures, places)


def _picture(shapes: np.ndarray, pixels: np.ndarray) -> EncodedPicture:
    return EncodedPicture(shapes, pixels, lambda: pixels)


def _packed(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]


def _unpacked(packed: list[Any]) -> np.ndarray:
    kind, shape, data = packed
    return np.frombuffer(base64.b64decode(data), kind).reshape(shape)
