"""Changes to the logits of one row by the host: the caller's processors, and the mask of the answer's grammar.

It needs each token before the next is chosen, so such a row is read once a step, while the device runs the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import mlx.core as mx
import numpy as np

from ..constraints.matcher import Matcher
from ..errors import OptionError
from .watch import calling, name_of


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
    """A row as its processors and its grammar see it. `matcher` follows the answer, if it holds to a form."""

    def __init__(
        self, processors: Iterable[LogitsProcessor] = (), tokens: Sequence[int] = (), matcher: Matcher | None = None
    ):
        self._processors = [_own(processor) for processor in processors]
        self._ahead: list[list[LogitsProcessor]] = []  # the processors behind each token that may be accepted next
        self._tokens = [int(token) for token in tokens] if self._processors else []
        self.matcher = matcher

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        if self._processors:
            self._tokens.append(token)
        if self._ahead:
            self._processors = self._ahead.pop(0)
        if self.matcher is not None:
            self.matcher.consume(token)

    def process(self, logits: mx.array, draft: Sequence[int] = ()) -> mx.array:
        """Logits (1 + n, vocabulary) float32 of the next token, and of those behind each of a draft of n tokens, as the
        processors change them. Raises `OptionError` for a processor that raises, or returns no logits."""
        self._ahead, processors, made = [], self._processors, []
        for at in range(1 + len(draft)):
            if draft:  # which may be wrong: processors that remember go on from the tokens that are accepted
                processors = [_own(processor) for processor in processors]
                self._ahead.append(processors)
            tokens, scores = mx.array(np.array([*self._tokens, *draft[:at]], np.int32)), logits[at : at + 1]
            for processor in processors:
                with calling("logits processor", processor):
                    changed = processor(tokens, scores)
                scores = _checked(processor, changed, scores.shape)
            made.append(scores.astype(mx.float32))
        return made[0] if len(made) == 1 else mx.concatenate(made)


def _checked(processor: LogitsProcessor, made: object, shape: tuple[int, ...]) -> mx.array:
    """The logits that a processor returned. Raises `OptionError` for anything else, or for another shape."""
    if isinstance(made, mx.array) and made.shape == shape:
        return made
    kind = f"an array {made.shape}" if isinstance(made, mx.array) else type(made).__name__
    raise OptionError(
        f"the logits processor {name_of(processor)} returned {kind}, expected an mx.array of logits {shape}"
    )


def _own(processor: LogitsProcessor) -> LogitsProcessor:
    with calling("logits processor", processor):
        return processor.copy() if hasattr(processor, "copy") else processor  # type: ignore[no-any-return]
