"""Ranks that share a model in step: rank 0 says what its schedulers do, and the others do the same.

A `Scheduler` has no clock and no threads, so the same prompts, cancels and steps make the same calls of the model, in
the same order, which MLX's operations between ranks need. Each rank keeps its part of beginnings, and pictures, in
caches of its own, which hold the same and are cleared at the same step. An error must come to all ranks in one place:
`agree` ends those that differ.

to a rank      {"scheduler", "caches", "kept"}   a scheduler begins; the numbers of those that are left, caches too
               {"add", "prompt"}                 a prompt, to a scheduler
               {"step", "cancel", "clears"}      a step of a scheduler
               {"bye"}                           there is no more to do
both ways      {"wrong": number, "error"}        the error of this number, None of the last one
from a rank    {"wrong": number, "lacks"}        it does not have rank 0's error of this number
"""

from __future__ import annotations

import base64
import itertools
import queue
import secrets
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from ..backends.memory import wired_limit
from ..constraints.response_format import ResponseFormat
from ..distributed.links import Came, Link, patience
from ..errors import DistributedError, Lfm2VlError, OptionError, first_line
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..processing.tokenizer import Tokenizer
from .bound_cache import BoundCache
from .options import GenerationOptions, grammar_of
from .prompt_cache import PromptCache
from .request import EncodedPicture, EncodedPrompt
from .scheduler import Output, Scheduler
from .sequence import Sequence
from .vision_cache import VisionCache

AGAIN = "start the command again"
LOST = f"rank 0 is lost; {AGAIN}"
CACHES: dict[str, type[VisionCache] | type[PromptCache]] = {"vision_cache": VisionCache, "prompt_cache": PromptCache}

NO_JSON = ("response_format", "logits_processors")
PLAIN = [field.name for field in fields(GenerationOptions) if field.name not in NO_JSON]


class Lead:
    """Rank 0's word to the others. Used by the thread that drives the schedulers.

    Attributes:
        since: when the step that runs began, by `time.monotonic()`; None between steps.
        failure: why no step is possible any more; empty while they are.
    """

    def __init__(self, links: Iterable[Link], came: Came):
        """`came`: what the links hear."""
        self._links, self._came = {link.rank: link for link in links}, came
        self._count, self._errors = itertools.count(), itertools.count()
        self._numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()  # schedulers and caches
        self.since: float | None = None
        self.failure = ""

    def begin(self, scheduler: Scheduler, caches: Mapping[str, BoundCache[Any, Any, Any]]) -> int:
        """Begins a scheduler in all ranks, which drop what rank 0 has dropped; returns its number."""
        every = {name: [self._number(cache), cache.limit, cache.clears] for name, cache in caches.items()}
        number = self._number(scheduler)
        self._say({"scheduler": number, "caches": every, "kept": list(self._numbers.values())})
        return number

    def add(self, number: int, prompt: EncodedPrompt) -> None:
        """Adds a prompt to a scheduler of the others."""
        self._say({"add": number, "prompt": _as_json(prompt)})

    @contextmanager
    def step(self, number: int, cancelled: list[int], clears: list[int]) -> Iterator[None]:
        """While the block does a step, so do the others; before, they cancel these rows, and clear their caches if
        these counts say so. An error of the block ends the others. Raises `DistributedError` as `check`."""
        self._say({"step": number, "cancel": cancelled, "clears": clears})
        self.since = time.monotonic()
        try:
            yield
            self.check()
        except Exception as error:
            self.fail(error)
            raise
        finally:
            self.since = None

    def check(self) -> None:
        """Raises `DistributedError` where a rank is lost, or has an error that rank 0 does not have."""
        while not self._came.empty():
            self._hear(*self._came.get())
        self._check_links()

    def agree(self, error: Exception) -> None:
        """Waits until the others have an error, too. Raises `DistributedError` where one has none."""
        number, missing, end = next(self._errors), set(self._links), time.monotonic() + patience()
        self._say({"wrong": number, "error": str(error)})
        while missing:
            try:
                rank, said = self._came.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise _differs(min(missing), error) from None
            if said is not None and "lacks" in said:
                raise _differs(rank, error)
            if said is None or said["wrong"] != number:
                self._hear(rank, said)
            missing.discard(rank)

    def fail(self, error: Exception) -> None:
        """Ends the others, as rank 0 has an error that they do not have."""
        self.failure = self.failure or (
            str(error) if isinstance(error, DistributedError) else f"rank 0 has failed ({text_of(error)}); {AGAIN}"
        )
        for link in self._links.values():
            link.send({"wrong": None, "error": self.failure})
            link.close()

    def close(self) -> None:
        """Lets the others go."""
        for link in self._links.values():
            if not self.failure:
                link.send({"bye": True})
            link.close()

    def _number(self, thing: object) -> int:
        if thing not in self._numbers:
            self._numbers[thing] = next(self._count)
        return self._numbers[thing]

    def _say(self, message: Mapping[str, Any]) -> None:
        for link in self._links.values():
            link.send(message)
        self._check_links()

    def _check_links(self) -> None:
        if not self.failure and any(link.lost.is_set() for link in self._links.values()):
            self._hear(*self._came.get())  # the last that a link gives is None
        if self.failure:
            raise DistributedError(self.failure)

    def _hear(self, rank: int, said: dict[str, Any] | None) -> None:
        """Raises `DistributedError` for what is no answer."""
        what = "is lost, and its part of the model" if said is None else f"has failed ({said['error']})"
        self.failure = f"rank {rank} {what}; {AGAIN}"
        raise DistributedError(self.failure)


def text_of(error: Exception) -> str:
    """The words of an error for other ranks; with its type, where it is none of this library."""
    return str(error) if isinstance(error, Lfm2VlError) else f"{type(error).__name__}: {first_line(error)}"


def _differs(rank: int, error: Exception) -> DistributedError:
    return DistributedError(f"{error}; rank {rank} does not have this error, so {AGAIN}")


class LeadingScheduler(Scheduler):
    """A scheduler of rank 0, whose steps the others do, too."""

    def __init__(self, model: Lfm2VlForConditionalGeneration, tokenizer: Tokenizer, **caches: Any):
        """`caches`: as of `Scheduler`."""
        super().__init__(model, tokenizer, **caches)
        self._lead: Lead = model.lead
        self._caches = {name: cache for name, cache in caches.items() if cache is not None}
        self._number = self._lead.begin(self, self._caches)
        self._to_cancel: deque[int] = deque()  # at the next step
        self.agree = self._lead.agree

    def add(self, prompt: EncodedPrompt, *, started: float) -> Sequence:
        """As `Scheduler.add`. Raises `OptionError` for options that are Python's own, too."""
        prompt = _prepared(prompt)
        row = super().add(prompt, started=started)
        self._lead.add(self._number, prompt)
        return row

    def cancel(self, id: int) -> None:
        """As `Scheduler.cancel`."""
        self._to_cancel.append(id)

    def step(self) -> list[Output]:
        """As `Scheduler.step`. Raises `DistributedError` where a rank is lost, or has an error of its own."""
        with ExitStack() as held:
            for cache in self._caches.values():  # which another thread may clear between two steps only
                held.enter_context(cache.lock)
            cancelled = [self._to_cancel.popleft() for _ in range(len(self._to_cancel))]
            clears = [cache.clears for cache in self._caches.values()]
            held.enter_context(self._lead.step(self._number, cancelled, clears))
            for id in cancelled:
                super().cancel(id)
            return super().step()


class Follower:
    """Another rank than 0, which does what that says. `caches`: those of its schedulers."""

    def __init__(self, model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor, link: Link, came: Came):
        """`link`: to rank 0; `came`: what it hears."""
        self._model, self._processor, self._link, self._came = model, processor, link, came
        self._schedulers: dict[int, tuple[Scheduler, list[VisionCache | PromptCache]]] = {}  # with their caches
        self._caches: dict[int, VisionCache | PromptCache] = {}
        self._errors = itertools.count()

    def run(self) -> None:
        """Does what rank 0 says, until it lets this rank go. Raises `DistributedError` where it is lost, or an error is
        not its own, too."""
        with wired_limit():
            while (said := self._came.get()[1]) is not None:
                if "bye" in said:
                    return
                self._do(said)
        raise DistributedError(LOST)

    def agree(self, error: Exception) -> None:
        """Waits until rank 0 has an error, too. Raises `DistributedError` where it has none."""
        number = next(self._errors)
        self._link.send({"wrong": number, "error": str(error)})
        try:
            said = self._came.get(timeout=patience())[1]
        except queue.Empty:
            raise _differs(0, error) from None
        if said is None or said.get("wrong", number) is None:
            raise DistributedError(LOST if said is None else said["error"])
        if said.get("wrong") != number:
            raise _differs(0, error)

    def _do(self, said: dict[str, Any]) -> None:
        if "scheduler" in said:
            self._begin(said["scheduler"], said["caches"], set(said["kept"]))
        elif "add" in said:
            prompt = _from_json(said["prompt"])
            grammar = grammar_of(self._model, self._processor.tokenizer, prompt.options)
            prompt = replace(prompt, grammar=grammar)
            self._schedulers[said["add"]][0].add(prompt, started=0.0)
        elif "step" in said:
            self._step(*self._schedulers[said["step"]], said)
        elif said["wrong"] is None:
            raise DistributedError(said["error"])
        else:  # rank 0 waits for this error here, too
            self._link.send({"wrong": said["wrong"], "lacks": True})
            raise DistributedError(f"rank 0 has failed ({said['error']}); {AGAIN}")

    def _begin(self, number: int, caches: dict[str, list[int]], kept: set[int]) -> None:
        held: tuple[dict[int, Any], ...] = (self._schedulers, self._caches)
        for things in held:
            for gone in things.keys() - kept:
                del things[gone]
        own: dict[str, Any] = {}
        for name, (at, limit, clears) in caches.items():
            if at not in self._caches:
                self._caches[at] = CACHES[name](limit)
                self._caches[at].clears = clears
            own[name] = self._caches[at]
        scheduler = Scheduler(self._model, self._processor.tokenizer, **own)
        scheduler.agree = self.agree
        self._schedulers[number] = scheduler, list(own.values())

    def _step(self, scheduler: Scheduler, caches: list[VisionCache | PromptCache], said: dict[str, Any]) -> None:
        """Does a step of rank 0's."""
        for cache, count in zip(caches, said["clears"], strict=True):
            if cache.clears != count:
                cache.clear()
                cache.clears = count
        for id in said["cancel"]:
            scheduler.cancel(id)
        scheduler.step()


def _prepared(prompt: EncodedPrompt) -> EncodedPrompt:
    """The prompt as all ranks run it: with a seed. Raises `OptionError` for options that are Python's own."""
    options = prompt.options
    if options.draft == "auto":
        raise OptionError("draft 'auto' goes by the clock, which ranks that share a model do not have; use 'ngram'")
    if options.logits_processors or options.draft not in (None, "ngram"):
        raise OptionError("a model that several ranks share takes no functions and draft models as options")
    seed = secrets.randbits(63) if options.seed is None else options.seed
    return replace(prompt, options=replace(options, seed=seed))


def _as_json(prompt: EncodedPrompt) -> dict[str, Any]:
    """The prompt without its grammar, as JSON, with the arrays of its pictures, for `_from_json` in another process."""
    options = {name: getattr(prompt.options, name) for name in PLAIN}
    if (form := prompt.options.response_format) is not None:
        options["response_format"] = [form.kind, form.value, form.separators]
    pictures = [[_packed(picture.spatial_shapes), _packed(picture.pixels)] for picture in prompt.pictures]
    return {"ids": _packed(prompt.ids), "options": options, "pictures": pictures, "places": prompt.places}


def _from_json(data: dict[str, Any]) -> EncodedPrompt:
    """A prompt of `_as_json`."""
    options = dict(data["options"])
    if (form := options.pop("response_format", None)) is not None:
        kind, value, separators = form
        value = tuple(value) if isinstance(value, list) else value
        options["response_format"] = ResponseFormat(kind, value, tuple(separators))
    pairs = [tuple(map(_unpacked, pair)) for pair in data["pictures"]]
    pictures = tuple(EncodedPicture(shapes, pixels, partial(np.asarray, pixels)) for shapes, pixels in pairs)
    places = tuple((start, end) for start, end in data["places"])
    return EncodedPrompt(_unpacked(data["ids"]), GenerationOptions(**options), pictures, places)


def _packed(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]


def _unpacked(packed: list[Any]) -> np.ndarray:
    kind, shape, data = packed
    return np.frombuffer(base64.b64decode(data), kind).reshape(shape)
