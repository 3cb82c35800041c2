"""Where one answer stands in its grammar: which tokens may follow, and which must."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConstraintError, first_line
from .finish import finished_at_exit

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matcher:
    """Follows one answer. It never raises: where the grammar cannot be followed, `error` says why.

    Attributes:
        consumed: tokens so far.
        forced: the tokens that come next, as far as they are certain. They are the tokenizer's own way to write a text
            that the grammar leaves no choice in, so that a model sees what it knows. They must all be consumed.
        error: why the grammar cannot be followed any further.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int):
        self._matcher, self._words = matcher, -(-vocabulary // 32)
        self.consumed = 0
        self.forced: deque[int] = deque()
        self.error: ConstraintError | None = None
        self._look_ahead()

    @property
    def stopped(self) -> bool:
        """Whether the answer is whole, and nothing but its end can follow."""
        return self._matcher.is_stopped()

    @finished_at_exit
    def consume(self, token: int) -> None:
        """Takes the next token, which `mask` must allow."""
        self.consumed += 1
        if self.forced and self.forced.popleft() != token:
            self.error = ConstraintError(f"token {token} is not the one that the response format forces")
            self.forced.clear()
        elif self._check(self._matcher.consume_token(token)) and not self.forced:
            self._look_ahead()

    @finished_at_exit
    def mask(self) -> np.ndarray:
        """The tokens that may follow, as bits: (ceil(vocabulary / 32),) uint32, the first token lowest."""
        if self.forced:
            words = np.zeros(self._words, np.uint32)
            words[self.forced[0] // 32] = np.uint32(1) << np.uint32(self.forced[0] % 32)
            return words
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]  # there may be one more
        self._check(not self._matcher.is_error())
        return words

    def masks(self, draft: Sequence[int]) -> list[np.ndarray]:
        """The mask of the next token, and those behind each token of a draft, up to the first that may not follow or
        that ends the answer. The matcher stays where it is."""
        before, forced, error = self.consumed, deque(self.forced), self.error
        made = [self.mask()]
        for token in draft:
            if not made[-1][token // 32] >> np.uint32(token % 32) & 1:
                break
            self.consume(token)
            if self.stopped or self.error is not None:
                break
            made.append(self.mask())
        if self.consumed > before:
            self._matcher.rollback(self.consumed - before)
        self.consumed, self.forced, self.error = before, forced, error
        return made

    def _look_ahead(self) -> None:
        self.forced.extend(self._matcher.compute_ff_tokens())
        self._check(not self._matcher.is_error())

    def _check(self, good: bool) -> bool:
        if not good and self.error is None:
            why = first_line(ValueError(self._matcher.get_error()))
            self.error = ConstraintError(f"the response format cannot be followed: {why}")
        return good
