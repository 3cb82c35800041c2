"""Two results of a benchmark beside each other: what `bench --json` wrote, and a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config.files import parse_json
from ..errors import OptionError, first_line
from .report import Report, aligned

HEADINGS = ("measured", "before", "now", "ratio")
FIELDS = {  # of each part of a report, and what a part is called by
    "answers": ("picture", ("first_token", "tokens_per_second", "peak_memory")),
    "batches": ("size", ("pictures_per_second", "peak_memory")),
    "drafts": ("answer", ("plain", "drafting", "model_steps")),
    "constraints": ("", ("step", "masked_step", "model_steps")),
    "again": ("", ("first", "second", "idle")),
}


def read(file: Path) -> dict[str, Any]:
    """The measurements that `bench --json` wrote. Raises `OptionError` for another file."""
    way = f"mlx-lfm2vl bench --json > {file.name} writes one"
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error}); {way}") from None
    except ValueError as error:
        raise OptionError(f"{file}: is no JSON ({first_line(error)}); {way}") from None
    if (
        not isinstance(data, dict)
        or not {"model", "machine", "answers", "batches"} <= data.keys()
        or not dict(_measured(data))
    ):
        raise OptionError(f"{file}: holds no measurements; {way}")
    return data


def comparison(before: Mapping[str, Any], report: Report) -> list[str]:
    """Lines of a table of what both hold, and of what differs between them beside."""
    now = report.to_dict()
    old, new = dict(_measured(before)), dict(_measured(now))
    shared = [name for name in new if name in old]
    rows = [(name, _shown(name, old[name]), _shown(name, new[name]), _ratio(old[name], new[name])) for name in shared]
    lines = [f"before: {what}" for what in _others(before, now)]
    return [*lines, *([""] if lines else []), *aligned([HEADINGS, *rows])] if rows else [*lines, "nothing is in both"]


def _measured(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of a report by their names."""
    for part, (by, fields) in FIELDS.items():
        found = data.get(part) or ()
        for each in found if isinstance(found, (list, tuple)) else [found]:
            for field in fields:
                value = each.get(field) if isinstance(each, Mapping) else None
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield " ".join(filter(None, (part, str(each.get(by, "")), field.replace("_", " ")))), float(value)


def _others(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Circumstances of the first result that are not those of the second."""
    if before["model"] != now["model"]:
        yield f"model {before['model']}"
    if before.get("draft_model") != now.get("draft_model"):
        yield f"draft model {before.get('draft_model')}"
    machine = before["machine"] if isinstance(before["machine"], Mapping) else {}
    for name in ("name", "cores", "backend", "device_type", "versions"):
        if machine.get(name) != now["machine"][name]:
            yield f"{name.replace('_', ' ')} {machine.get(name)}"


def _shown(name: str, value: float) -> str:
    if name.endswith("memory"):
        return f"{value / 1e9:.3f} GB"
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def _ratio(before: float, now: float) -> str:
    return f"{now / before:.2f}" if before else "-"
