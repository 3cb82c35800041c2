"""Drafts from what was said before: the longest likeness, against its definition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.generation.ngrams import SHORTEST, NgramDraft, Ngrams


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_the_longest_likeness_is_continued(tokens, earlier, count):
    """Against the definition, for a text and one that was there before."""
    store = Ngrams()
    store.add_text(earlier)
    draft = NgramDraft(store)
    for length in range(len(tokens)):  # the answer grows
        made = draft(tokens[:length], count)
    made = draft(tokens, count)
    own, other = (likeness(text, tokens) for text in (tokens, earlier))
    best = max(own, other)
    if best < SHORTEST:
        assert made == []
    elif own >= other:
        continuations = [tokens[at:] for at in places(tokens, tokens, best)]
        assert any(made == ((rest * count)[:count]) for rest in continuations)
    else:
        assert made in [earlier[at : at + count] for at in places(earlier, tokens, best)]


def likeness(text: list[int], tokens: list[int]) -> int:
    """The most last tokens that stand in the text, and not at its end if that is the same text."""
    return max((n for n in range(1, 17) if n <= len(tokens) and places(text, tokens, n)), default=0)


def places(text: list[int], tokens: list[int], length: int) -> list[int]:
    """The places behind the last tokens."""
    ends = range(length, len(text) + (text is not tokens))
    return [end for end in ends if text[end - length : end] == tokens[-length:]]


def test_earlier_answers_are_kept_up_to_a_limit():
    store = Ngrams(100)
    for number in range(50):
        store.add_text([number, number + 1, number + 2, number + 3, number + 4])
    assert len(store.tokens) <= 106
    assert store.find([48, 49, 50]) != (0, 0) and store.find([1, 2, 3]) == (0, 0)
