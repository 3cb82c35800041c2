"""A finished folder to the hub: what belongs to a model, after it has shown that it is whole and answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..config import read_json
from ..config.files import check_own, place_in, read_text
from ..errors import NotFiniteError, OutputError
from ..hub import LICENCES, check_new_name, check_writable, publish
from ..pretrained import load
from ..weights.shards import read_shards
from . import plot, report, search
from .calibration import questions
from .card import renamed
from .check import check_folder
from .config_files import JSON_FILES, NAMES
from .quantization_error import encoded

TOKENS = 8  # that a folder must generate before it is published
CARD = "README.md"
REPORTS = (report.FILE, search.FILE, plot.ERRORS_FILE, plot.CURVE_FILE)
FILES = ("config.json", CARD, "model.safetensors.index.json", *NAMES, *REPORTS, *LICENCES)


@dataclass(frozen=True)
class Upload:
    """The files that are or would be uploaded: (name, bytes) of the files, the names of what stays here, and the
    commit's URL, None after a dry run."""

    repository: str
    files: tuple[tuple[str, int], ...]
    left: tuple[str, ...] = ()
    url: str | None = None


def upload(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> Upload:
    """Uploads a model folder to a hub repository, once it has loaded and answered a question about a picture.

    What belongs to a model is sent: its configuration, tokenizer, template and processor files, the weights, licences,
    the reports of `convert`, and the card, which then names the repository. All else stays here. The token and the
    repository are checked first. After a broken connection it goes on where it was, in this call or the next.

    Args:
        folder: as `convert` writes it.
        repo: `owner/name`, made if it is not there.
        private: make a new repository private.
        message: of the commit.
        dry_run: check the folder, and send nothing.
        token: of the hub.

    Raises:
        OutputError: for a folder that is not fit to be published.
        HubError: for what the hub refuses; and what loading raises.
    """
    path = Path(folder).expanduser()
    check_new_name(repo)
    if not path.is_dir():
        raise OutputError(f"{folder}: no such folder")
    if not dry_run:
        check_writable(repo, token)  # rather than after the work
    check_publishable(path)
    weights = {file.name for file in read_shards(path).files}
    entries = sorted(path.iterdir())
    found = [entry for entry in entries if entry.is_file() and (entry.name in weights or _belongs(entry.name))]
    for entry in found:
        check_own(entry)
    files = tuple((entry.name, entry.stat().st_size) for entry in found)
    left = tuple(entry.name + "/" * entry.is_dir() for entry in entries if entry not in found)
    if dry_run:
        return Upload(repo, files, left)
    sources: dict[str, Path | bytes] = {name: path / name for name, _ in files}
    sources[CARD] = renamed(read_text(path / CARD), repo).encode()
    url = publish(sources, repo, message=message or f"Upload {path.name}", private=private, token=token)
    return Upload(repo, files, left, url)


def _belongs(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in FILES)


def check_publishable(folder: Path) -> None:
    """Raises `OutputError`, or what loading raises, unless the folder is whole, has a card and a template, and its
    model answers a question about a picture with finite numbers."""
    for name in ("config.json", *JSON_FILES):
        if (folder / name).is_file() and (key := place_in(read_json(folder / name))):
            raise OutputError(
                f"{folder}: is not fit to be published: {name} says where it came from ({key}), maybe a path of this "
                "disk; write the folder anew (mlx-lfm2vl convert --repair)"
            )
    for remark in check_folder(folder):
        raise OutputError(f"{folder}: is not fit to be published: {remark}")
    if not (folder / CARD).is_file():
        raise OutputError(f"{folder}: is not fit to be published: it has no README.md, the model card")
    model, processor = load(folder)
    asked = next(question for question in questions() if question.pictures)
    try:
        model.generate(**encoded(processor, asked), max_new_tokens=TOKENS, do_sample=False)
    except NotFiniteError as error:
        raise OutputError(
            f"{folder}: is not fit to be published: the model computes numbers that are not finite ({error})"
        ) from None
