"""The requests that an engine is answering: they join a scheduler, get its responses, and fail each for itself."""

from __future__ import annotations

import time
import weakref
from functools import partial

import mlx.core as mx

from ..generation.prompt_cache import PromptCache
from ..generation.response import GenerationResponse
from ..generation.stream import make_scheduler
from ..generation.vision_cache import VisionCache
from ..threads import cancellation
from .queue import Job, Loaded


class Answers:
    """The answers of one model."""

    def __init__(self, loaded: Loaded, vision_cache: VisionCache, prompt_cache: PromptCache):
        self._loaded = loaded
        self._scheduler = make_scheduler(
            loaded[0], loaded[1].tokenizer, vision_cache=vision_cache, prompt_cache=prompt_cache
        )
        self._present: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._present)

    def step(self) -> bool:
        """One step; whether a request has ended. Requests are asked before, and within a prompt's layers by a backend
        that computes when it is called, whether they have been cancelled."""
        self._ask()
        before = len(self._present)
        with cancellation(self._ask):
            outputs = self._scheduler.step()
        for job in self._present.values():
            job.tell_progress()
        for id, item in outputs:
            self._present[id].request.deliver(item)
            if isinstance(item, Exception) or item.finish_reason is not None:
                del self._present[id]
        return len(self._present) < before

    def _ask(self) -> None:
        for id, job in self._present.items():
            if job.request.ask_to_stop():
                self._scheduler.cancel(id)

    def close(self) -> None:
        """Ends all requests as they stand."""
        for job in self._present.values():
            job.request.abandon()
            job.request.cut_off()
            job.request.give_up()
        self._present.clear()

    def add(self, job: Job) -> None:
        """Begins to answer a request."""
        if job.request.stopped():
            job.request.give_up()
        if job.request.done:
            return
        started = time.perf_counter() - job.seconds  # it was read before its turn
        if len(self._scheduler) == 0:
            mx.reset_peak_memory()
        try:
            assert job.read is not None
            model, processor = self._loaded
            prompt = job.read(weakref.ref(model), processor) if job.prompt is None else job.prompt
            job.request.note_read()
            row = self._scheduler.add(prompt, started=started)
        except BaseException as error:
            job.request.deliver(error)
            return
        job.prompt = job.read = None  # the row has it
        job.row, self._present[row.id] = row, job
        job.request.so_far = partial(row.statistics, self._loaded[0].config.placeholders)


def answer_alone(job: Job, loaded: Loaded) -> None:
    """Does a job's work of its own."""
    assert job.work is not None
    if job.request.stopped():
        job.request.give_up()
        return
    try:
        job.work(loaded)
        job.request.deliver(GenerationResponse("", (), "stop"))
    except BaseException as error:
        job.request.deliver(error)
