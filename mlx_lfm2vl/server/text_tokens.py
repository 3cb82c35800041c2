"""The tokens of an answer's text: those with a share in what is told of it, and none that a stop text cuts off."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..generation.detokenizer import Decoder
from ..generation.response import GenerationResponse, TopLogprob
from ..processing.conversation import CALL_END, CALL_START
from ..processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Token:
    """A token, and where its text begins in that of the answer: None for one of a block of calls."""

    id: int
    logprob: float
    top: tuple[TopLogprob, ...]
    start: int | None


class TextTokens:
    """The tokens of one answer with stop texts and logprobs. Each comes with the response that tells its first
    character; at the end of an answer that no stop text ends, the rest comes, too."""

    def __init__(self, tokenizer: Tokenizer):
        self._decoder = Decoder(tokenizer, special=False)
        self._marks = tuple(map(tokenizer.backend.token_to_id, (CALL_START, CALL_END)))
        self._block = False  # whether calls are being written
        self._written = self._told = 0  # characters
        self._waiting: list[_Token] = []

    def read(self, response: GenerationResponse) -> GenerationResponse:
        """The response with the tokens of its text."""
        tops = response.top_logprobs or ((),) * len(response.tokens)
        for id, logprob, top in zip(response.tokens, response.logprobs or (), tops, strict=True):
            self._waiting.append(_Token(id, logprob, top, self._place(id)))
        self._told += len(response.text)
        whole = response.finish_reason is not None and response.stop_text is None
        count = 0
        for token in self._waiting:
            if not whole and token.start is not None and token.start >= self._told:
                break
            count += 1
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return replace(
            response,
            tokens=tuple(token.id for token in ready),
            logprobs=tuple(token.logprob for token in ready),
            top_logprobs=None if response.top_logprobs is None else tuple(token.top for token in ready),
        )

    def _place(self, token: int) -> int | None:
        start, end = self._marks
        if token == start and not self._block:
            self._block = True
            self._written += len(self._decoder.finish())
        if self._block:
            self._block = token != end
            return None
        place = self._written
        self._written += len(self._decoder.push(token))
        return place
