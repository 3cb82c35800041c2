"""Drafts that copy: the last tokens are looked for in prompt, answer and earlier answers, and what followed them there
is proposed (prompt lookup decoding: Saxena 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHORTEST, LONGEST = 3, 16  # tokens that must be alike, and that are compared
PLACES = 16  # the latest at which a text is looked at
KEPT = 2**15  # tokens of earlier answers
_BREAK = -1  # between two texts


class Ngrams:
    """Tokens of texts, and where each three of them stand. At most `limit` tokens, of the latest texts."""

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self.tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # behind these tokens

    def add(self, tokens: Iterable[int]) -> None:
        """Adds tokens behind those that there are."""
        for token in tokens:
            self.tokens.append(token)
            key = tuple(self.tokens[-SHORTEST:])
            if len(key) == SHORTEST and _BREAK not in key:
                self._places.setdefault(key, []).append(len(self.tokens))

    def add_text(self, tokens: Sequence[int]) -> None:
        """Adds a text of its own."""
        self.add([*tokens, _BREAK])
        if self._limit is not None and len(self.tokens) > self._limit:
            kept = self.tokens[-self._limit // 2 :]
            self.tokens, self._places = [], {}
            self.add(kept)

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """How many of the last of these tokens stand together somewhere, most of all places, and the place behind them;
        (0, 0) for none."""
        best = (0, 0)
        for place in reversed(self._places.get(tuple(tokens[-SHORTEST:]), ())[-PLACES:]):
            if place == len(self.tokens):
                continue
            most = min(LONGEST, place, len(tokens))
            pairs = (self.tokens[place - n] == tokens[-n] for n in range(1, most + 1))
            length = next((n for n, alike in enumerate(pairs) if not alike), most)
            if length > best[0]:
                best = length, place
        return best

    def following(self, place: int, count: int) -> list[int]:
        """At most `count` tokens at a place, up to the end of the text. At the end of all it goes on with itself: what
        repeats is expected to go on to repeat."""
        made: list[int] = []
        period = len(self.tokens) - place
        for at in range(count):
            token = self.tokens[place + at] if at < period else made[at - period]
            if token == _BREAK:
                break
            made.append(token)
        return made


class NgramDraft:
    """A `Draft` of one answer. `earlier`: answers to look at, too."""

    def __init__(self, earlier: Ngrams):
        self._own, self._earlier = Ngrams(), earlier

    def __call__(self, tokens: Sequence[int], count: int) -> list[int]:
        self._own.add(tokens[len(self._own.tokens) :])
        (own, at), (other, there) = self._own.find(tokens), self._earlier.find(tokens)
        if not own and not other:
            return []
        return self._own.following(at, count) if own >= other else self._earlier.following(there, count)
