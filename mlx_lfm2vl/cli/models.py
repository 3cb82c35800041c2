"""`mlx-lfm2vl models`: the downloaded models of the hub's cache, listed, located, removed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError, HubError, OptionError, counted
from .stderr import note

SUMMARY = "list or remove downloaded models"
DESCRIPTION = """\
Lists the models that were downloaded from the hub, by this program and others, with their sizes and what each is. With
names it says where these are; with --remove it removes them. A model in use elsewhere should not be removed.

  mlx-lfm2vl models
  mlx-lfm2vl models LiquidAI/LFM2.5-VL-450M
  mlx-lfm2vl models --remove LiquidAI/LFM2.5-VL-450M
"""
WIDTH = 80  # columns of the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="OWNER/NAME", help="models; without any, all of them are listed")
    parser.add_argument("--remove", action="store_true", help="remove these models, all of their revisions")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from ..hub import cache_folder, cached_models, of_page, remove_models

    names = list(dict.fromkeys(of_page(name)[0] for name in args.names))
    if args.remove:
        if not names:
            raise OptionError("--remove removes the models that are named; name them")
        print(f"{shown_size(remove_models(names))} freed")
        return 0
    models, problems = cached_models()
    for problem in problems:
        note(problem)
    known = {model.name: model for model in models}
    for name in names:
        if name not in known:
            raise HubError(f"{name}: is not in the cache {cache_folder()}; `mlx-lfm2vl models` lists what is")
        print(known[name].folder or f"{name} has no whole revision here")
    if names:
        return 0
    rows = [
        (model.name, shown_size(model.bytes), age(model.last_used), described(model.folder, model.is_partial))
        for model in models
    ]
    for line in table([("model", "size", "last used", "what it is"), *rows]) if rows else ():
        print(line)
    note(f"{counted(len(models), 'model')}, {shown_size(sum(model.bytes for model in models))}, in {cache_folder()}")
    return 0


def described(folder: Path | None, is_partial: bool) -> str:
    """The kind of a cached folder, in a few words."""
    from ..config import config_of, read_json
    from ..config.family import FAMILIES

    if folder is None:
        return "a download that broke off"
    if not (folder / "config.json").exists():
        return "no model's config.json"
    try:
        data = read_json(folder / "config.json")
        if data.get("model_type") not in FAMILIES:
            return f"another model ({str(data.get('model_type'))[:20]})"
        config = config_of(data)
    except ConfigError:
        return "a config.json that is damaged"
    record = config.quantization or {}
    widths = {record.get("bits"), *(each.get("bits") for each in record.values() if isinstance(each, Mapping))}
    bits = sorted(width for width in widths if isinstance(width, int))
    kind = f"{' and '.join(map(str, bits))} bits" if bits else "dense"
    whole = any(folder.glob("*.safetensors")) and not is_partial
    return f"{config.family}, {kind}" + ("" if whole else ", not whole")


def age(moment: float) -> str:
    """The time since then, in the unit that suits it."""
    seconds = max(0.0, time.time() - moment)
    for unit, step in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= step:
            count = int(seconds // step)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "now"


def shown_size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


def table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Columns side by side in `WIDTH`; a name that is too long has a line of its own."""
    size, used, what = (max(len(row[column]) for row in rows) for column in (1, 2, 3))
    room = WIDTH - size - used - what - 6
    name = min(room, max(len(row[0]) for row in rows))
    lines = []
    for row in rows:
        rest = f"{row[1]:>{size}}  {row[2]:<{used}}  {row[3]}"
        if len(row[0]) > name:
            lines += [row[0], f"{'':<{name}}  {rest}"]
        else:
            lines.append(f"{row[0]:<{name}}  {rest}")
    return lines
