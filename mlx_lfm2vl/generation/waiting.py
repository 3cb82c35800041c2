"""Rows that wait for states which another row computes: of what both prompts begin with, or of a picture."""

from __future__ import annotations

from collections.abc import Sequence as List

from .prompt_entry import SHORTEST_PASS, shared_length
from .sequence import Sequence
from .vision_cache import VisionCache


def shared_beginning(one: Sequence, other: Sequence) -> int:
    """The number of tokens that two prompts begin with alike, where they are worth a pass of their own; else 0. Neither
    prompt ends with them, nor does a picture contain their end."""
    shared = shared_length(one.ids, one.prompt.spans, other.ids, other.prompt.spans)
    shared = min(shared, len(one.ids) - 1, len(other.ids) - 1)
    shared = next((start for start, end in other.prompt.places if start < shared < end), shared)
    return shared if shared >= SHORTEST_PASS else 0


def waits_for_beginning(row: Sequence, others: List[Sequence]) -> bool:
    """Whether one of these rows, which are prefilled by themselves, computes what the row begins with. It will take a
    checkpoint there."""
    for other in others:
        shared = shared_beginning(other, row)
        if shared > max(row.known, other.prefilled):
            other.points[shared] = True
            return True
    return False


def waits_for_picture(row: Sequence, others: List[Sequence], vision_cache: VisionCache) -> bool:
    """Whether one of these rows, which are prefilled, encodes a picture that the row needs."""
    pairs = zip(row.prompt.places, row.prompt.pictures, strict=True)
    needed = {key for (start, _), picture in pairs if start >= row.known for key in picture.keys}
    unknown = {key for key in needed if key not in vision_cache}
    encoding = (picture for other in others if not other.encoded for picture in other.prompt.pictures)
    return any(not unknown.isdisjoint(picture.keys) for picture in encoding)
