"""Probabilities of tokens as both protocols of OpenAI have them."""

from __future__ import annotations

from typing import Any

from ..generation.response import GenerationResponse
from ..processing.tokenizer import Tokenizer
from .fields import Fields

MOST = 20  # likeliest tokens in each place


def likeliest(fields: Fields, asked: bool, flag: str) -> int:
    """The field `top_logprobs`, which is only for answers with logprobs. Raises `ApiError`."""
    count: int = fields.whole("top_logprobs", 0, MOST) or 0
    if count and not asked:
        fields.fail("top_logprobs", f"is given without {flag}")
    return count


def entries(response: GenerationResponse, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """An entry for each token; none for an answer without logprobs."""
    if response.logprobs is None:
        return []
    found = []
    tops = response.top_logprobs or ((),) * len(response.tokens)
    for token, logprob, top in zip(response.tokens, response.logprobs, tops, strict=True):
        likely = [_entry(each.text, each.logprob) for each in top]
        found.append(_entry(tokenizer.decode([token]), logprob) | {"top_logprobs": likely})
    return found


def _entry(text: str, logprob: float) -> dict[str, Any]:
    """`bytes` is empty for a token that is a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": [] if "\ufffd" in text else list(text.encode())}
