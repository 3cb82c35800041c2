"""Tokens of an answer that are proposed before the model is asked, so that several are computed in one run.

In: a `Draft` and the tokens so far. Out: proposals, as many as pay. They change no answer, only what it costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..backends.memory import allocations
from ..errors import NotFiniteError, OptionError, OutOfMemoryError, short
from ..models.dspark import DSparkDraftModel
from .watch import Pieces, calling, name_of

LEAST, FIRST, MOST = 2, 4, 8  # tokens of a draft: at least, of the first one, and at most
BLOCK = 64  # tokens of all rows that are run together at most
LONGEST_PAUSE = 128  # tokens without a draft, once many have been wrong
SHORTEST_ANSWER = 8  # tokens: for an answer of fewer no draft reads the prompt
DOUBTED = 0.2  # a token of a block that is less likely to be right, with all before it, is not run


@runtime_checkable
class Draft(Protocol):
    """Proposes how an answer goes on. A function is one.

    One that remembers something between calls has a method `copy()`, which gives one in its present state: every answer
    gets a copy of the one in the options. One with an attribute `timed` that is true is not asked while it costs more
    time than it saves. One with a method `prefill` is given the prompt (`PrefilledDraft`).
    """

    def __call__(self, tokens: Sequence[int], count: int, /) -> Sequence[int]:
        """At most `count` tokens that may follow those of prompt and answer so far, or none. A picture is a run of one
        id. The tokens of one answer grow from call to call."""


@runtime_checkable
class PrefilledDraft(Draft, Protocol):
    """A `Draft` that reads the prompt before the first token, in the prompt's time, and proposes when it is asked."""

    def prefill(self, tokens: Sequence[int], /) -> Pieces[None]:
        """Reads the tokens of the prompt, a piece at a time. Called again, it reads nothing."""


class Speculation:
    """The drafts of one answer, as long as they pay: longer after one that was right; after one that was wrong for the
    most part shorter, and none for some tokens, twice as many each time.

    Args:
        draft: what proposes them.
        prompt: its tokens.
        limit: tokens of the answer, at most.
        timed: whether they end by the clock, too (`Pace`).

    Attributes:
        drafter: what proposes them for all rows of a batch at once (`BlockSpeculation`), or None.
        said: prompt and answer so far.
        drafted: tokens that were proposed and run.
        accepted: those of them that the model would have chosen.
    """

    drafter: DSparkDraftModel | None = None
    longest, fair = MOST, 0.5  # tokens of a draft; the part that must be right, for the next to come at once

    def __init__(self, draft: Draft, prompt: Sequence[int], limit: int, *, timed: bool = False):
        self._draft, self.timed, self.said = draft, timed, list(prompt)
        self._prompt, self._limit = len(self.said), limit
        self._always = isinstance(draft, PrefilledDraft)  # there is one whenever it is asked for
        self.drafted = self.accepted = 0
        self._length, self._pause, self._resume = FIRST, 0, 0
        self._waited = False  # for tokens that a draft may follow

    def prefill(self, lost: bool) -> Pieces[None]:
        """Lets a draft that wants to read the prompt, or ends it: for a short answer, where memory runs out, and where
        drafts have cost more time than they may (`lost`)."""
        if not isinstance(self._draft, PrefilledDraft):
            return
        if len(self.said) == self._prompt and (self._limit < SHORTEST_ANSWER or (lost and self.timed)):
            self._end()
            return
        try:
            with allocations("the draft model's prompt"):
                yield from self._draft.prefill(self.said)
        except (OutOfMemoryError, NotFiniteError):
            self._end()
            self.timed = False

    def _end(self) -> None:
        """Lets go of the draft: there are no proposals from here on."""
        self._draft, self._resume = _nothing, sys.maxsize

    def wanted(self, most: int) -> int:
        """The length of the next draft, at most `most` and one less than tokens are left; 0 for none."""
        left = self._limit - (len(self.said) - self._prompt) - 1
        return 0 if len(self.said) < self._resume else max(0, min(self._length, most, left))

    def propose(self, most: int, vocabulary: int, known: bool) -> list[int]:
        """A draft of the next tokens, at most `most`. `known`: whether all tokens are that were chosen; else the draft
        only says that one may be worth waiting for them. Raises `OptionError` for a function that raises, and for
        tokens that the model does not have."""
        count = self.wanted(most)
        if not count or (self._always and not known):
            draft = [0] * count
        else:
            try:
                with allocations("a draft"):
                    draft = self._asked(count, vocabulary)
            except OutOfMemoryError:
                if not isinstance(self._draft, PrefilledDraft):
                    raise
                self._end()
                self.timed, draft = False, []
        if known and self._waited and not draft:
            self._wait()
        self._waited = bool(draft) and not known
        return draft

    def _asked(self, count: int, vocabulary: int) -> list[int]:
        with calling("draft", self._draft):
            made = self._draft(self.said, count)
        try:
            draft = [int(token) for token in made][:count]
        except (TypeError, ValueError):
            raise OptionError(
                f"the draft {name_of(self._draft)} gave {short(repr(made))}, expected token ids"
            ) from None
        if wrong := [token for token in draft if not 0 <= token < vocabulary]:
            raise OptionError(f"draft proposes token {wrong[0]}, but the model has {vocabulary}")
        return draft

    def count(self, drafted: int, accepted: int) -> None:
        """Takes note of a draft that was run, and of how much of it was right."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        if accepted == drafted:
            self._length = min(self.longest, max(self._length, 2 * drafted))
        if accepted < self.fair * drafted:
            self._length = max(LEAST, 2 * accepted)
            self._wait()
        else:
            self._pause = 0

    def _wait(self) -> None:
        """Proposes none for some of the tokens that follow."""
        self._pause = min(LONGEST_PAUSE, 2 * self._pause + 1)
        self._resume = max(self._resume, len(self.said) + self._pause)


def _nothing(tokens: Sequence[int], count: int) -> Sequence[int]:
    return []


class BlockSpeculation(Speculation):
    """Drafts of a DSpark drafter, which reads along in the cache of the batch and proposes for all its rows at once."""

    fair = 0.01

    def __init__(self, drafter: DSparkDraftModel, prompt: Sequence[int], limit: int):
        super().__init__(lambda tokens, count: self._block[:count], prompt, limit, timed=True)
        self.drafter, self.longest, self._always = drafter, drafter.config.block_size, True
        self._block: list[int] = []

    def take(self, tokens: Sequence[int], confidence: Sequence[float]) -> None:
        """Takes the block that comes next, up to the first token that is doubted. `confidence`: of each, where all
        before it are right."""
        sure, self._block = 1.0, []
        for token, own in zip(tokens, confidence, strict=True):
            sure *= own
            if sure < DOUBTED:
                break
            self._block.append(token)
