"""The table of docs/performance.md from the lines that measurements left."""

import statistics
from typing import Any

from .rows import HF, OURS, ROWS, VLM, Number, Row

PEERS = (VLM, HF)
MARKS = {True: "with OpenBLAS", False: "without OpenBLAS"}


def render(lines: list[dict[str, Any]], blas: bool, rows: tuple[Row, ...] = ROWS) -> str:
    """Markdown: when, where and with what, then a row a number, with the ratios of ours to the peers' and the targets.
    Only lines with (or without) OpenBLAS count."""
    lines = [line for line in lines if line["blas"] == blas]
    if not lines:
        return "nothing measured yet\n"
    out = [
        heading(lines, blas),
        "",
        "| | | mlx-lfm2vl | mlx-vlm | ratio | transformers | ratio |",
        "|" + " --- |" * 7,
    ]
    for row in rows:
        own = [line for line in lines if line["row"] == row.name]
        if own:
            out += [number_row(row, number, own) for number in row.numbers]
    return "\n".join(out) + "\n"


def put_in(page: str, tables: dict[bool, str]) -> str:
    """The page with the tables between the marks `<!-- with OpenBLAS -->`, `<!-- without OpenBLAS -->` and the
    `<!-- end -->` after each."""
    for blas, table in tables.items():
        before, mark, rest = page.partition(f"<!-- {MARKS[blas]} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise SystemExit(f"the page has no marks for the table {MARKS[blas]}")
        page = f"{before}{mark}\n{table}\n{end}{after}"
    return page


def heading(lines: list[dict[str, Any]], blas: bool) -> str:
    days = sorted({line["date"][:10] for line in lines})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    listed = ", ".join(versions(lines))
    loads = [line["busy"] for line in lines]
    rounds = [sum(line["row"] == row and line["side"] == OURS for line in lines) for row in {x["row"] for x in lines}]
    machine = lines[-1]["machine"]
    rounds_said = f"{span(rounds)} round{'' if max(rounds) == 1 else 's'}"
    return (
        f"{when}, {machine}; {listed}; MLX {'with' if blas else 'without'} OpenBLAS. Medians of {rounds_said} in turn. "
        f"Processes of others that ran when a measurement began: {span(loads)}."
    )


def versions(lines: list[dict[str, Any]]) -> list[str]:
    """Each package with its version, once where all sides have the same, else with the side."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        for package, version in line["versions"].items():
            found.setdefault(package, {})[line["side"]] = version
    named = []
    for package, sides in found.items():
        if len(set(sides.values())) == 1:
            named.append(f"{package} {next(iter(sides.values()))}")
        else:
            named += [f"{package} {version} ({side})" for side, version in sides.items()]
    return named


def span(values: list[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def value(number: Number, lines: list[dict[str, Any]], side: str) -> tuple[float | None, str]:
    """The median of a side's rounds and how it is written; a time that ran out is a bound."""
    own = [line for line in lines if line["side"] == side]
    found = [number.read(line["result"]) for line in own if "result" in line]
    if found:
        middle = statistics.median(found)
        return middle, written(middle, number.unit)
    if own:
        return None, f"none in {own[-1]['timeout']:.0f} s"
    return None, "-"


def written(amount: float, unit: str) -> str:
    digits = 3 if amount < 0.995 else 2 if amount < 99.5 else 0
    return f"{amount:.{digits}f} {unit}"


def number_row(row: Row, number: Number, lines: list[dict[str, Any]]) -> str:
    ours, shown = value(number, lines, OURS)
    if number.limit is not None and ours is not None:
        shown += f" ({'at most' if ours <= number.limit else 'missed: at most'} {number.limit:g})"
    cells = [row.name, number.title, shown]
    for peer in PEERS:
        theirs, written_theirs = value(number, lines, peer)
        bound = timeout_bound(number, lines, peer) if theirs is None else None
        cells += [written_theirs, ratio(number, ours, theirs, bound, number.targets.get(peer))]
    return "| " + " | ".join(cells) + " |"


def timeout_bound(number: Number, lines: list[dict[str, Any]], side: str) -> float | None:
    """What a time is at least, if the process ran out of time."""
    limits = [line["timeout"] for line in lines if line["side"] == side and "timeout" in line]
    return min(limits) if limits and number.unit == "s" else None


def ratio(number: Number, ours: float | None, theirs: float | None, bound: float | None, target: float | None) -> str:
    if ours is None or (theirs is None and bound is None):
        return "-"
    amount = ours / (theirs if theirs is not None else bound)  # type: ignore[operator]
    text = f"{amount:.2f}" if amount >= 0.1 else f"{amount:.2g}"
    if theirs is None:
        text = f"below {text}"
    if target is None:
        return text
    met = amount <= target if number.less else amount >= target
    return f"{text} ({'' if met else 'missed: '}{'at most' if number.less else 'at least'} {target:g})"
