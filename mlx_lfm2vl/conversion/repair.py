"""Faults that converters leave in published MLX folders: found, told, and put right in a new folder.

Looked for: missing tokenizer, template and processor files; tiling switched off and a stale patch budget in the
processor files; an index that is not true; tensors that nothing uses; counts of layers and widths in config.json that
the weights contradict; code. What is missing comes from the base model, which the folder's card names, or the caller.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ModelConfig, ProcessorFiles, config_in, read_json
from ..config.files import CODE, QUANTISATION, place_in
from ..errors import HubError, OutputError, WeightsError
from ..hub import resolve, resolve_checked
from ..processing.template import TOKENIZER_FILE
from ..weights.atomic_folder import check_target, finished
from ..weights.head import TIED
from ..weights.load import StoredTensors, open_model
from ..weights.save import write_json
from ..weights.shards import read_shards
from .card import DEFAULT_ORGANISATION, CardSource
from .check import TEMPLATES, check_index, check_result, has_template
from .config_files import JSON_FILES, copy
from .convert import Note, Progress, write_model
from .families import RULES, FileRules
from .lfm2_files import PROCESSOR_FILES

TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_FILE)
TEXT_FILES = ("*.json", "*.jinja", "*.txt", "*.md")
LOST = "cannot be repaired from here; name the original model (--base)"


@dataclass(frozen=True)
class Finding:
    """Something wrong with `file`, and what is done about it; `remedy` is None where nothing can be. `sources`: files
    of the base model that are copied."""

    file: str
    problem: str
    remedy: str | None
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.remedy or LOST}"


def inspect(folder: Path, base: Path | None = None) -> list[Finding]:
    """The faults of a folder. `base`: the original's folder, for what is missing. Raises what reading the weights
    and config.json raises: damaged weights are beyond repair."""
    _, stored = open_model(folder)
    return [
        *_missing(folder, base),
        *_processor(folder),
        *_weights(folder, stored),
        *_config(folder, stored.config),
    ]


def repair(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
    on_note: Note | None = None,
) -> list[Finding]:
    """Writes a repaired copy of a folder. If nothing is wrong, nothing is written.

    Args:
        source: folder or hub repository.
        target: the folder to write.
        base: the original model, folder or repository. None is the one of Liquid AI's that the folder's card names, if
            it can be had.
        dry_run: write nothing.
        overwrite: replace an old model folder.
        revision: branch, tag or commit of the repository.
        progress: told of a stage, how much of it is done, and how much there is in all.
        on_note: told what the user should know.

    Returns:
        What was found.

    Raises:
        OutputError: if something cannot be repaired; and what loading raises.
    """
    on_note = on_note or (lambda note: None)
    target = Path(target).expanduser()
    folder = resolve_checked(source, config_in, revision=revision)
    if not dry_run:
        check_target(target, folder, overwrite)
    original = _base(folder, source, base, on_note) if _missing(folder, None) else None
    findings = inspect(folder, original)
    if dry_run or not findings:
        return findings
    if lost := [finding for finding in findings if finding.remedy is None]:
        raise OutputError(f"{folder}: {lost[0]}")
    _, stored = open_model(folder)
    with finished(target, overwrite) as part:
        write_model(stored, part, None, progress=progress)
        if (folder / "README.md").is_file():
            copy(folder / "README.md", part / "README.md")
        for name in (name for finding in findings for name in finding.sources):
            assert original is not None
            if name == TOKENIZER_FILE and (part / name).is_file():  # its template is wanted, the rest is the folder's
                template = _template_within(original)
                write_json(part / name, {**read_json(part / name), "chat_template": template})
            else:
                copy(original / name, part / name)
        for name in PROCESSOR_FILES:
            if (part / name).is_file():
                mended, _ = _rules(part).mended(read_json(part / name), _processor_config(part))
                write_json(part / name, mended)
        for remark in check_result(part, target):
            on_note(remark)
    return findings


def _base(
    folder: Path,
    source: str | os.PathLike[str],
    base: str | os.PathLike[str] | None,
    on_note: Note,
) -> Path | None:
    """The original's folder, with its text files at least; None if it is not named or cannot be had."""
    if base is not None:
        return resolve(base, patterns=TEXT_FILES)
    name = CardSource.of(source, folder).named_base
    if name is None:
        return None
    if not name.startswith(DEFAULT_ORGANISATION):  # a stranger's card must not choose what is asked of the network
        on_note(f"its card names {name} as the base model; give it as the base (--base) to take files from there")
        return None
    try:
        return resolve(name, patterns=TEXT_FILES)
    except HubError as error:
        on_note(f"the base model cannot be had: {error}")
        return None


def _missing(folder: Path, base: Path | None) -> list[Finding]:
    """What the base has too is copied: what the folder lacks, or what says nothing there."""

    def there(*names: str) -> tuple[str, ...]:
        return () if base is None else tuple(name for name in names if (base / name).is_file())

    def found(file: str, problem: str, sources: tuple[str, ...], otherwise: str | None = None) -> Finding:
        return Finding(file, problem, f"taken from {base}" if sources else otherwise, sources)

    absent = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    out = [found(name, "is missing", there(name)) for name in absent]
    if not has_template(folder):
        inside = (TOKENIZER_FILE,) if base is not None and _template_within(base) else ()
        out.append(found("chat_template.jinja", "is missing", there(*TEMPLATES) or inside))
    if not config_in(folder).placeholders:  # a text model needs none
        return out
    sources = there(*PROCESSOR_FILES) if base is not None and _says_how_to_cut(base) else ()
    if not _has_processor(folder):
        made = "written from config.json and the defaults of these models"
        out.append(found(PROCESSOR_FILES[0], "is missing", sources, made))
    elif not _says_how_to_cut(folder):
        silent = next(name for name in PROCESSOR_FILES if (folder / name).is_file())
        out.append(found(silent, "does not say how pictures are cut", sources))
    return out


def _template_within(folder: Path) -> Any:
    """The template in the tokenizer's configuration, if there is one."""
    file = folder / TOKENIZER_FILE
    return read_json(file).get("chat_template") if file.is_file() else None


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR_FILES)


def _rules(folder: Path) -> FileRules:
    return RULES[type(config_in(folder))]


def _processor_config(folder: Path) -> ProcessorFiles:
    return _rules(folder).processor.from_folder(folder)


def _says_how_to_cut(folder: Path) -> bool:
    return _has_processor(folder) and _processor_config(folder).is_stated


def _processor(folder: Path) -> list[Finding]:
    out: list[Finding] = []
    config, rules = _processor_config(folder), _rules(folder)
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            out += [Finding(name, *change) for change in rules.mended(read_json(folder / name), config)[1]]
    return out


def _weights(folder: Path, stored: StoredTensors) -> list[Finding]:
    out: list[Finding] = []
    unused = [name for name in read_shards(folder).tensors if stored.names.get(name) not in stored.infos]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        out.append(Finding("model.safetensors", f"{unused[0]}{more} are used by nothing", "left out"))
    try:
        check_index(folder)
    except WeightsError as error:
        problem = str(error).partition(": ")[2]
        out.append(Finding("model.safetensors.index.json", problem, "written anew"))
    return out


def _config(folder: Path, fitted: ModelConfig) -> list[Finding]:
    data, said = read_json(folder / "config.json"), config_in(folder)
    out: list[Finding] = []
    layers = [getattr(each.vision_config, "num_hidden_layers", 0) for each in (said, fitted)]  # a text model has none
    if layers[0] != layers[1]:
        out.append(Finding("config.json", f"says {layers[0]} layers of the tower", f"set to the {layers[1]} there are"))
    widths = (said.text_config.feed_forward_size, fitted.text_config.feed_forward_size)
    if widths[0] != widths[1]:
        out.append(Finding("config.json", f"says a feed-forward width of {widths[0]}", f"set to {widths[1]}"))
    ties = {section.get(key) for section in (data, data.get("text_config") or {}) for key in TIED} - {None}
    if ties and ties != {fitted.tie_word_embeddings}:
        tied = "tied" if fitted.tie_word_embeddings else "untied"
        out.append(Finding("config.json", "says of the head what the weights contradict", f"set to {tied}"))
    if any(data.get(key) for key in QUANTISATION) and not fitted.quantization:
        out.append(Finding("config.json", "records a quantisation of dense weights", "left out"))
    files = [name for name in ("config.json", *JSON_FILES) if (folder / name).is_file()]
    contents = {name: read_json(folder / name) for name in files}
    code = sorted(path.name for path in folder.glob("*.py"))
    code += [name for name, content in contents.items() if _names_code(content)]
    if code:
        out.append(Finding(code[0], "brings code along, which is not needed", "left out"))
    if places := [(name, key) for name, content in contents.items() if (key := place_in(content))]:
        out.append(Finding(places[0][0], f"says where it came from ({places[0][1]})", "left out"))
    return out


def _names_code(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file, or a section of it, names classes of a repository's code."""
    sections = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    return any(key in section for section in sections for key in CODE)
