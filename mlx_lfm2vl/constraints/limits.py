"""Bounds of what llguidance may spend on a form."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits


def limits() -> LLParserLimits:
    """Bounds of the cost of compiling and following a grammar. With llguidance's own limits a hostile one may take
    seconds and gigabytes."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_grammar_size=100_000,
        max_lexer_states=50_000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=100_000,
        max_items_in_row=5_000,  # an object of 1,000 optional properties has 4,000
        verbose_errors=False,  # the parser's state in an error's text is for llguidance's developers
    )
