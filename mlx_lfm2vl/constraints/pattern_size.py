"""The size of a regular expression with its repetitions written out, which is what compiling and following it cost."""

from __future__ import annotations

import re

from ..errors import ConstraintError
from .compiler_message import quoted

MAX_REPEATED = 2**16  # parts
_PART = re.compile(
    r"""(?P<class>\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\])
    |(?P<count>\{(?P<least>\d+)(?P<range>,(?P<most>\d*))?\})
    |(?P<open>\((?:\?P?<\w+>|\?[\w-]*:)?)
    |(?P<mark>[|*+?^$])
    |(?P<close>\))
    |(?P<other>\\[pPx]\{[^}]*\}|\\.|.)""",
    re.X | re.S,
)


def check_pattern(pattern: str) -> None:
    """Raises `ConstraintError` for a regular expression of more than `MAX_REPEATED` parts."""
    if pattern_size(pattern) > MAX_REPEATED:
        raise ConstraintError(
            f"the regex {quoted(pattern)} cannot be held: it repeats parts more than {MAX_REPEATED:,} times in "
            "all; use smaller counts"
        )


def pattern_size(pattern: str) -> int:
    """Characters and classes of a regular expression, each as often as its counts say."""
    sizes, last = [0], 0  # of the groups around, and of the part that a count repeats
    for part in _PART.finditer(pattern):
        if part["open"]:
            sizes.append(0)
            last = 0
        elif part["close"] and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif part["count"]:
            times = max(int(part["least"]), int(part["most"] or 0), 1)
            sizes[-1] += last * (times - 1)
            last *= times
        elif not part["mark"]:
            last = 1
            sizes[-1] += 1
    return sum(sizes)
