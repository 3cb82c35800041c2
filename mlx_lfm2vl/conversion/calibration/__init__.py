"""Pictures and questions by which a quantisation is calibrated and measured: the bundled ones beside this file, or a
user's folder or .jsonl file.

A folder holds pictures and, if wanted, prompts.txt with lines `PICTURE<tab>QUESTION`; a line without a tab asks its
question of every picture, one that begins with a tab asks without a picture. The rows of a file are those of `batch`,
{"image": "a.png", "prompt": "Why?"}; answers in them are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OptionError, PromptError
from ...processing.json_lines import each_row
from ...processing.open_file import beside
from ...processing.picture_keys import row_pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PROMPTS = "prompts.txt"
FITTED = "calibrate.txt"  # the bundled questions to calibrate on; those in `PROMPTS` are measured
DEFAULT_PROMPT = "Describe this image in detail."
HELD_OUT = 3  # of a user's questions, one of so many is measured and not calibrated on


@dataclass(frozen=True)
class Question:
    """A question to a model, about pictures (paths or addresses) or about none; `system` comes before it."""

    prompt: str
    pictures: tuple[str, ...] = ()
    system: str | None = None

    @property
    def names(self) -> str | None:
        """The pictures' names, for a report, shortened where they are long; None without pictures."""
        return ", ".join(Path(picture).name[-64:] for picture in self.pictures) or None


def questions(place: Path | None = None) -> list[Question]:
    """The questions of a folder or of a .jsonl file, or the bundled ones. Raises `OptionError` naming what cannot be
    used."""
    folder = Path(__file__).resolve().parent if place is None else place
    if folder.suffix == ".jsonl" and folder.is_file():
        return _rows(folder)
    if not folder.is_dir():
        raise OptionError(f"calibration: {folder} is no folder and no .jsonl file")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    file = folder / PROMPTS
    if not file.is_file():
        asked = [Question(DEFAULT_PROMPT, (str(picture),)) for picture in pictures]
    else:
        asked = _listed(file, pictures)
    if not asked:
        raise OptionError(f"calibration: {folder} has neither pictures nor a {PROMPTS} with questions")
    return asked


def divided(place: Path | None = None) -> tuple[list[Question], list[Question]]:
    """The questions to calibrate on, and those to measure on, which are others: of a user's, every third. A single one
    is both. Raises `OptionError`, as `questions`."""
    asked = questions(place)
    if place is None:
        return _listed(Path(__file__).resolve().parent / FITTED, []), asked
    if len(asked) == 1:
        return list(asked), list(asked)
    return [asked[index] for index in range(len(asked)) if index % HELD_OUT], list(asked[::HELD_OUT])


def _rows(file: Path) -> list[Question]:
    try:
        return [question for _, question in each_row(file, _row)]
    except (OptionError, PromptError) as error:
        raise OptionError(f"calibration: {error}") from None


def _row(data: Any, folder: Path) -> Question:
    images = row_pictures(data, ("prompt", "system"))
    prompt, system = data.get("prompt", DEFAULT_PROMPT if images else None), data.get("system")
    if not isinstance(prompt, str) or not (system is None or isinstance(system, str)):
        raise PromptError('"prompt" and "system" must be strings, and a row has a "prompt" or an "image"')
    return Question(prompt, tuple(str(beside(image, folder)) for image in images), system)


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
            out += [Question(prompt.strip(), (str(picture),)) for picture in pictures]
        elif not name.strip():
            out.append(Question(prompt.strip()))
        elif not (file.parent / name.strip()).is_file():
            raise OptionError(f"calibration: {file}, line {number}: there is no picture {name.strip()}")
        else:
            out.append(Question(prompt.strip(), (str(file.parent / name.strip()),)))
    return out
