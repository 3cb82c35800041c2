"""Tokens of an answer that are proposed before the model is asked, so that several are computed in one run.

In: a `Draft` and the tokens so far. Out: proposals, as many as pay. They change no answer, only what it costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..errors import OptionError, short
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

    Attributes:
        drafter: what proposes them for all rows of a batch at once (`BlockSpeculation`), or None.
        timed: whether they end by the clock, too (`Pace`).
        always: whether there is one whenever it is asked for.
        drafted: tokens that were proposed and run.
        accepted: those of them that the model would have chosen.
    """

    drafter: DSparkDraftModel | None = None
    longest, fair = MOST, 0.5  # tokens of a draft; the part that must be right, for the next to come at once

    def __init__(self, draft: Draft, *, timed: bool = False):
        self._draft, self.timed, self.always = draft, timed, isinstance(draft, PrefilledDraft)
        self.drafted = self.accepted = 0
        self._length, self._pause, self._resume = FIRST, 0, 0

    def begin(self, tokens: Sequence[int]) -> Pieces[None]:
        """Lets a draft that wants to read the prompt."""
        if isinstance(self._draft, PrefilledDraft):
            yield from self._draft.prefill(tokens)

    @property
    def reads(self) -> bool:
        """Whether the draft wants to read the prompt."""
        return isinstance(self._draft, PrefilledDraft)

    def end(self) -> None:
        """Lets go of the draft: there are no proposals from here on."""
        self._draft, self._resume = _nothing, sys.maxsize

    def wanted(self, tokens: int, most: int) -> int:
        """The length of a draft behind so many tokens, at most `most`; 0 for none."""
        return 0 if tokens < self._resume else max(0, min(self._length, most))

    def propose(self, tokens: Sequence[int], most: int, vocabulary: int) -> list[int]:
        """A draft of at most `most` tokens. Raises `OptionError` for a function that raises, and for tokens that the
        model does not have."""
        count = self.wanted(len(tokens), most)
        if not count:
            return []
        with calling("draft", self._draft):
            made = self._draft(tokens, count)
        try:
            draft = [int(token) for token in made][:count]
        except (TypeError, ValueError):
            raise OptionError(
                f"the draft {name_of(self._draft)} gave {short(repr(made))}, expected token ids"
            ) from None
        if wrong := [token for token in draft if not 0 <= token < vocabulary]:
            raise OptionError(f"draft proposes token {wrong[0]}, but the model has {vocabulary}")
        return draft

    def count(self, drafted: int, accepted: int, tokens: int) -> None:
        """Takes note of a draft and of how much of it was right; prompt and answer have so many tokens since."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        if accepted == drafted:
            self._length = min(self.longest, max(self._length, 2 * drafted))
        if accepted < self.fair * drafted:
            self._length = max(LEAST, 2 * accepted)
            self.pause(tokens)
        else:
            self._pause = 0

    def pause(self, tokens: int) -> None:
        """Proposes none for some of the tokens that follow so many."""
        self._pause = min(LONGEST_PAUSE, 2 * self._pause + 1)
        self._resume = max(self._resume, tokens + self._pause)


def _nothing(tokens: Sequence[int], count: int) -> Sequence[int]:
    return []


class BlockSpeculation(Speculation):
    """Drafts of a DSpark drafter, which reads along in the cache of the batch and proposes for all its rows at once."""

    fair = 0.01

    def __init__(self, drafter: DSparkDraftModel):
        super().__init__(lambda tokens, count: self._block[:count], timed=True)
        self.drafter, self.longest, self.always = drafter, drafter.config.block_size, True
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
