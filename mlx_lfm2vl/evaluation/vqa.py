"""The accuracy of VQA, by which TextVQA scores, too: what people said who were asked the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"},
    **{"seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`!'
_SHORT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "i'd've i'm i've isn't it'd it'll let's ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't "
    "shan't should've shouldn't somebody's someone'd someone'll someone's something'd something'll that'd that's "
    "there'd there're there's they'd they'll they're they've 'twas wasn't we'd we've weren't what'll what're what's "
    "what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't "
    "y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _SHORT.split()}


def normalised(text: str) -> str:
    """A text as VQA compares it: lower case, marks and articles left out, numbers up to ten as digits, contractions
    with their apostrophe."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").replace("\n", " ").replace("\t", " ")
    text = text.strip()
    made = text
    for mark in _MARKS:
        made = made.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    made = re.sub(r"\.(?!\d)", "", made)
    words = (_NUMBERS.get(word, word) for word in made.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """The mean, over the people asked, of how many of the others gave this answer: a third for each, 1 at most.

    The rule of VQA (Antol et al., ICCV 2015) with the normalisation of its evaluation, as TextVQA (Singh et al., CVPR
    2019) and its challenge use it.
    """
    given = normalised(text)
    said = [normalised(answer) for answer in answers]
    if len(said) == 1:
        return float(given == said[0])
    same = said.count(given)
    return sum(min(1.0, (same - (one == given)) / 3) for one in said) / len(said)
