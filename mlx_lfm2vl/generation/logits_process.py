"""Changes to the logits of one row by the host: the caller's processors, and the mask of the answer's grammar.

It needs each token before the next is chosen, so such a row is read once a step, while the device runs the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import mlx.core as mx
import numpy as np

from ..constraints.matcher import Matcher


@runtime_checkable
class LogitsProcessor(Protocol):
    """Changes the logits of a row before penalties, filters and sampling. A function is one; mlx-lm's are.

    One that remembers something between calls has a method `copy()`, which gives one in its present state: every answer
    gets a copy of the one in the options. An answer that begins again, after memory ran out, gets a new copy, whose
    first tokens include those that were generated.
    """

    def __call__(self, tokens: mx.array, logits: mx.array, /) -> mx.array:
        """Tokens of prompt and answer so far (n,) int32 and logits (1, vocabulary) float32 to logits; -inf rules a
        token out. They are on the device."""


class RowState:
    """A row as its processors and its grammar see it.

    Attributes:
        matcher: follows the answer, if it holds to a form.
    """

    def __init__(
        self, processors: Iterable[LogitsProcessor] = (), tokens: Sequence[int] = (), matcher: Matcher | None = None
    ):
        self._processors = [_own(processor) for processor in processors]
        self._tokens = [int(token) for token in tokens] if self._processors else []
        self.matcher = matcher

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        if self._processors:
            self._tokens.append(token)
        if self.matcher is not None:
            self.matcher.consume(token)

    def process(self, logits: mx.array) -> mx.array:
        """Logits (1, vocabulary) float32 as the processors change them."""
        tokens = mx.array(np.array(self._tokens, np.int32))
        for processor in self._processors:
            logits = processor(tokens, logits)
        return logits.astype(mx.float32)


def _own(processor: LogitsProcessor) -> LogitsProcessor:
    return processor.copy() if hasattr(processor, "copy") else processor  # type: ignore[no-any-return]
