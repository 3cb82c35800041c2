"""Command lines: what is wrong with them is said in one line, and exit code 2."""

from __future__ import annotations

from .bench import MODEL
from .row import Answers, Exits, Row

ROWS = [
    Row(
        "no tokens",
        lambda bench: bench.cli("generate", "--max-tokens", 0),
        Exits("--max-tokens", "'0' is not a whole number of at least 1"),
    ),
    Row(
        "a text alone",
        lambda bench: bench.cli("generate", "--model", MODEL, "--prompt", "Hi", "--max-tokens", 2),
        Answers(),
    ),
]
