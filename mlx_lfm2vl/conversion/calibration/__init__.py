"""Pictures and questions by which a quantisation is measured: the bundled ones beside this file, or a user's folder.

A folder holds pictures and, if wanted, prompts.txt with lines `PICTURE<tab>QUESTION`; a line without a tab asks its
question of every picture, one that begins with a tab asks without a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PROMPTS = "prompts.txt"
DEFAULT_PROMPT = "Describe this image in detail."


@dataclass(frozen=True)
class Question:
    """A question to a model, about a picture or about none."""

    prompt: str
    picture: Path | None = None


def questions(folder: Path | None = None) -> list[Question]:
    """The questions of a folder, or the bundled ones. Raises `OptionError` naming what cannot be used."""
    folder = Path(__file__).resolve().parent if folder is None else folder
    if not folder.is_dir():
        raise OptionError(f"calibration: {folder} is no folder")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    file = folder / PROMPTS
    if not file.is_file():
        asked = [Question(DEFAULT_PROMPT, picture) for picture in pictures]
    else:
        asked = _listed(file, pictures)
    if not asked:
        raise OptionError(f"calibration: {folder} has neither pictures nor a {PROMPTS} with questions")
    return asked


def _listed(file: Path, pictures: list[Path]) -> list[Question]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"calibration: {file} cannot be read ({error})") from None
    out: list[Question] = []
    for number, line in enumerate(lines, start=1):
        name, tab, prompt = line.rpartition("\t")
        if not prompt.strip():
            continue
        if not tab:
            out += [Question(prompt.strip(), picture) for picture in pictures]
        elif not name.strip():
            out.append(Question(prompt.strip()))
        elif not (file.parent / name.strip()).is_file():
            raise OptionError(f"calibration: {file}, line {number}: there is no picture {name.strip()}")
        else:
            out.append(Question(prompt.strip(), file.parent / name.strip()))
    return out
