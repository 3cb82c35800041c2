"""The loop that answers: a step runs a chunk of one prompt, and a token of every row that is being answered.

In go prompts that are ready to run, and cancels; out come responses by the id of their row. Single answers, chat turns,
batches and the engine all drive this loop. It has no threads and no clock: who drives it decides when a step runs.

    waiting -> prefilling (its turn comes with those of other prompts) -> running -> finished

Rows that fail together, or while they run forced tokens, go back to waiting and begin again, each by itself and behind
its answer so far. One that fails by itself ends with its error. After a token that failed, fewer rows run at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager, nullcontext, suppress

from ..backends.memory import allocations
from ..backends.thread_state import computing
from ..errors import OptionError, OutOfMemoryError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.tokenizer import Tokenizer
from ..threads import cancellation
from .chunked_prefill import prefill_chunk
from .decode import GenerationBatch
from .draft_model import make_speculation
from .ngrams import KEPT, SHORTEST, Ngrams
from .options import generation_config, positions_left
from .prefill import Prefill, prefill_forced, prefill_rows
from .prompt_cache import PromptCache
from .prompt_entry import SHORTEST_PASS, shared_length
from .request import EncodedPrompt
from .response import FinishReason, GenerationResponse
from .running import Running
from .sequence import Sequence
from .vision_cache import VisionCache
from .watch import Cancelled

Output = tuple[int, GenerationResponse | Exception]
FORCED_ALONE, FORCED_BESIDE = 2, 8  # tokens that are run together; to leave a batch and to join it again costs copies


class Scheduler:
    """Rows of one model. `step` gives (id, response) pairs; the last response of a row has a `finish_reason`, and an
    error ends it."""

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        tokenizer: Tokenizer,
        *,
        vision_cache: VisionCache | None = None,
        prompt_cache: PromptCache | None = None,
    ):
        for cache in (vision_cache, prompt_cache):
            if cache is not None:
                cache.bind(model)
        self._model, self._tokenizer = model, tokenizer
        self._vision_cache, self._prompt_cache = vision_cache, prompt_cache
        self._placeholders = model.config.placeholders
        self._rows: dict[int, Sequence] = {}  # those that have not finished
        self._waiting: list[Sequence] = []
        self._prefilling: deque[Prefill] = deque()
        self._running = Running(model.config.text_config.vocab_size)
        self._answers: Ngrams | None = None  # of rows with drafts
        self._most: int | None = None  # rows at a time, once a step of more has failed
        self._numpy = getattr(model, "backend", None) == "numpy"  # whose layers ask whether they are cancelled
        self._count = 0
        self.agree: Callable[[Exception], None] = lambda _: None  # told of each error before it is dealt with

    def add(self, prompt: EncodedPrompt, *, started: float) -> Sequence:
        """Takes a prompt, which begins at the next step. Short prompts that were added since the last step are run
        together.

        Args:
            prompt: whose pictures' patches are taken when they are encoded.
            started: `time.perf_counter()` when the request began.

        Raises:
            PromptError: if there is no room for an answer.
            OptionError: for a draft model that does not fit, or a second drafter.
        """
        ends = generation_config(self._model).eos_token_ids
        limit = positions_left(self._model, len(prompt.ids), bool(prompt.pictures))
        limit = min(limit, prompt.options.max_tokens or limit)
        speculation = None
        if prompt.options.draft is not None:
            self._answers = self._answers or Ngrams(KEPT)
            speculation = make_speculation(self._model.config, prompt, self._answers, limit)
            drafter, others = speculation.drafter, [row.drafter for row in self._rows.values()]
            if drafter is not None and any(each is not None and each is not drafter for each in others):
                raise OptionError("answers side by side have one DSpark drafter; wait for those with the other one")
        row = Sequence(self._count, prompt, self._tokenizer, ends, limit, started, speculation)
        self._count += 1
        self._rows[row.id] = row
        self._waiting.append(row)
        return row

    def cancel(self, id: int) -> None:
        """Ends a row at the next step. May be called from any thread; an id that has finished is nothing."""
        if (row := self._rows.get(id)) is not None:
            row.cancelled = True

    def cancel_all(self) -> None:
        """Ends all rows at the next step."""
        for id in list(self._rows):
            self.cancel(id)

    def __len__(self) -> int:
        return len(self._rows)

    @contextmanager
    def _spare(self, what: str) -> Iterator[None]:
        """Lets work that can be done without end early where memory runs out."""
        try:
            with allocations(what):
                yield
        except OutOfMemoryError as error:
            self.agree(error)

    @computing
    def step(self) -> list[Output]:
        """Runs a chunk of the prompt whose turn it is, and a token of every running row."""
        outputs = [*self._drop_cancelled()] if any(row.cancelled for row in self._rows.values()) else []
        self._begin_waiting()
        outputs += self._step_prefill()
        if any(row.cancelled for row in self._rows.values()):
            outputs += self._drop_cancelled()
        outputs += self._step_running()
        if not self._rows:
            self._most = None
        return outputs

    # Waiting

    def _begin_waiting(self) -> None:
        """Begins the rows that wait for no other: short ones together, the others by themselves."""
        begun = [row for prefill in self._prefilling for row in prefill.rows]
        room = len(self._waiting) if self._most is None else self._most - len(begun) - len(self._running.rows)
        leaders = [prefill.rows[0] for prefill in self._prefilling if len(prefill.rows) == 1]
        alone: list[list[Sequence]] = []
        short: list[Sequence] = []
        for row in list(self._waiting):
            if room <= 0:
                break
            if self._prompt_cache is not None:
                row.source = self._prompt_cache.find(row.tokens, row.prompt.spans, row.drafter)
                if _waits_for_beginning(row, leaders):
                    row.source = None
                    continue
            if self._vision_cache is not None and _waits_for_picture(row, begun, self._vision_cache):
                continue
            self._waiting.remove(row)
            row.prefilled = max(row.prefilled, min(row.known, len(row.ids)))
            room -= 1
            begun.append(row)
            if self._is_short(row):
                short.append(row)
            else:
                leaders.append(row)
                alone.append([row])
        for rows in (*alone, short) if short else alone:
            work = prefill_rows(self._model, rows, self._vision_cache, self._prompt_cache, self._running.lost)
            self._prefilling.append(Prefill(rows, work))

    def _is_short(self, row: Sequence) -> bool:
        """Whether a row is padded and run with others: its prompt is one chunk, no beginning of it is known, and no
        other row begins with it."""
        chunk = prefill_chunk(self._model.config.text_config, 1, 0)
        if row.alone or row.source is not None or len(row.ids) > chunk:
            return False
        return self._prompt_cache is None or not any(_shared_beginning(row, other) for other in self._waiting)

    # Prefilling

    def _step_prefill(self) -> Iterator[Output]:
        if not self._prefilling:
            return
        prefill = self._prefilling.popleft()
        length = max(len(row.tokens) for row in prefill.rows)
        try:
            with cancellation(prefill.check) if self._numpy else nullcontext():
                done = next(prefill.work)
        except StopIteration as end:
            yield from self._join(prefill.rows, end.value)
        except Cancelled:
            for row in prefill.rows:
                if row.id in self._rows:
                    yield self._last(row, row.detokenizer.finish(), "cancelled")
        except Exception as error:
            yield from self._failed(prefill.rows, error)
        else:
            self._prefilling.append(prefill)
            for row in prefill.rows:
                row.prefilled = max(row.prefilled, min(done - (length - len(row.tokens)), len(row.ids)))

    def _join(self, rows: list[Sequence], batch: GenerationBatch) -> Iterator[Output]:
        """Goes on with rows whose prompts are done, beside those that run."""
        left = [row for row in rows if row.id in self._rows]
        for row in left:
            row.prefilled = len(row.ids)
        try:
            if len(left) < len(rows):
                batch.filter([rows.index(row) for row in left])
                if all(row.drafter is None for row in left):
                    batch.follow(None)
            self._running.join(left, batch)
        except Exception as error:
            yield from self._failed(left, error)

    def _failed(self, rows: List[Sequence], error: Exception) -> Iterator[Output]:
        """Begins rows again, each by itself, where that may help; a row that failed by itself ends."""
        self.agree(error)
        rows = [row for row in rows if row.id in self._rows]
        if len(rows) == 1 and not rows[0].rejoins:
            del self._rows[rows[0].id]
            yield rows[0].id, error
            return
        for row in rows:
            row.alone, row.recorder, row.points, row.rejoins = True, None, {}, False
        self._waiting[:0] = rows

    # Running

    def _drop_cancelled(self) -> Iterator[Output]:
        for row in [row for row in self._waiting if row.cancelled]:
            self._waiting.remove(row)
            yield self._last(row, row.detokenizer.finish(), "cancelled")
        for prefill in list(self._prefilling):
            for row in prefill.rows:
                if row.cancelled and row.id in self._rows:
                    yield self._last(row, row.detokenizer.finish(), "cancelled")
            if all(row.cancelled for row in prefill.rows):
                self._prefilling.remove(prefill)
                with suppress(Cancelled), self._spare("the prompt cache"):
                    prefill.work.throw(Cancelled())  # what was run goes to the prompt cache
        cancelled = [row for row in self._running.rows if row.cancelled]
        for row in cancelled:
            yield self._last(row, row.detokenizer.finish(), "cancelled")
            self._remember(row)
        self._running.keep([row for row in self._running.rows if row not in cancelled])

    def _step_running(self) -> Iterator[Output]:
        rows = self._running.rows
        if not rows:
            return
        try:
            outcomes = self._running.step()
        except Exception as error:  # the states of the rows no longer agree
            self._running.keep([])
            if len(rows) > 1:
                self._most = len(rows) - 1
            yield from self._failed(rows, error)
            return
        going_on: list[Sequence] = []
        forced: list[Prefill] = []
        for row, text, reason, wrong in outcomes:
            if wrong is not None:
                del self._rows[row.id]
                yield row.id, wrong
                continue
            cache = None
            least = FORCED_ALONE if len(rows) == 1 else FORCED_BESIDE
            if reason is None and row.matcher is not None and row.forced(row.matcher, least):
                with self._spare("the answer's next tokens"):
                    cache = self._running.cache_of(row)
            if cache is not None:
                more, reason = row.push_forced()
                text += more
            if reason is not None:
                yield self._last(row, text, reason)
                self._remember(row)
                continue
            if text or row.detokenizer.tool_delta:
                yield row.id, row.respond(text)
            row.rejoins = cache is not None
            if cache is None:
                going_on.append(row)
            else:
                forced.append(Prefill([row], prefill_forced(self._model, row, cache)))
        self._running.keep(going_on)
        self._prefilling += forced

    def _remember(self, row: Sequence) -> None:
        """Gives the states of a row that has finished to the prompt cache; nothing where memory runs out. Its answer is
        looked at by later drafts."""
        if row.speculation is not None and self._answers is not None:
            self._answers.add_text([*row.ids[-SHORTEST:].tolist(), *row.generated])  # so that its beginning is found
        if row.recorder is None or self._prompt_cache is None:
            return
        with self._spare("the prompt cache"):
            cache = self._running.cache_of(row)
            row.recorder.take(cache)
            self._prompt_cache.put(row.recorder.entry(cache, row.generated), lasting=True)
        row.recorder = None  # its checkpoints are the entry's now

    def _last(self, row: Sequence, text: str, reason: FinishReason) -> Output:
        del self._rows[row.id]
        return row.id, row.respond(text, reason, row.statistics(self._placeholders))


def _shared_beginning(one: Sequence, other: Sequence) -> int:
    """The number of tokens that two prompts begin with alike, where they are worth a pass of their own; else 0. Neither
    prompt ends with them, nor does a picture contain their end."""
    shared = shared_length(one.ids, one.prompt.spans, other.ids, other.prompt.spans)
    shared = min(shared, len(one.ids) - 1, len(other.ids) - 1)
    shared = next((start for start, end in other.prompt.places if start < shared < end), shared)
    return shared if shared >= SHORTEST_PASS else 0


def _waits_for_beginning(row: Sequence, others: List[Sequence]) -> bool:
    """Whether one of these rows, which are prefilled by themselves, computes what the row begins with. It will take a
    checkpoint there."""
    for other in others:
        shared = _shared_beginning(other, row)
        if shared > max(row.known, other.prefilled):
            other.points[shared] = True
            return True
    return False


def _waits_for_picture(row: Sequence, others: List[Sequence], vision_cache: VisionCache) -> bool:
    """Whether one of these rows, which are prefilled, encodes a picture that the row needs."""
    pairs = zip(row.prompt.places, row.prompt.pictures, strict=True)
    needed = {key for (start, _), picture in pairs if start >= row.known for key in picture.keys}
    unknown = {key for key in needed if key not in vision_cache}
    encoding = (picture for other in others if not other.encoded for picture in other.prompt.pictures)
    return any(not unknown.isdisjoint(picture.keys) for picture in encoding)
