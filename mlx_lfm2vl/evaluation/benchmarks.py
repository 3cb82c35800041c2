"""Readers of public benchmarks, in the files that their makers publish, which the user has.

Each function takes an entry of such a file and the folder of its pictures, and makes a row with the benchmark's own
rule. Where its authors ask in no fixed words, the prompt is the one that is in use for short answers (LLaVA-1.5,
lmms-eval). Names of pictures never lead out of the folder.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from ..config import parse_json
from ..errors import OptionError, PromptError
from ..generation.request import conversation
from ..processing.json_lines import each_row
from .rows import EvaluationRow, boxes, check_rule, read_rows, texts
from .scoring import BOXES

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
_FIELD_BYTES = 2**27  # of a picture in a table
Entry = Mapping[str, Any]


def ocrbench(entry: Entry, pictures: Path) -> EvaluationRow:
    """OCRBench (Liu et al., 2023): OCRBench.json and OCRBench_Images/ of github.com/Yuliang-Liu/MultimodalOCR. An
    answer is right if an accepted one stands in it; of 1000 questions the score is the sum. Groups are its ten types.
    """
    rule = "formula" if entry["dataset_name"] == "HME100k" else "contains"
    image = _picture(pictures, entry["image_path"])
    return _row(entry["id"], entry["question"], image, rule, entry["answers"], entry["type"])


def docvqa(entry: Entry, pictures: Path) -> EvaluationRow:
    """DocVQA (Mathew et al., WACV 2021): val_v1.0.json or val_v1.0_withQT.json of rrc.cvc.uab.es (challenge 17), and
    its folder documents/. The mean ANLS."""
    image = _picture(pictures, entry["image"])
    return _row(entry["questionId"], entry["question"] + SHORT, image, "anls", entry["answers"])


def textvqa(entry: Entry, pictures: Path) -> EvaluationRow:
    """TextVQA (Singh et al., CVPR 2019): TextVQA_0.5.1_val.json of textvqa.org, and its folder train_images/. The mean
    accuracy of VQA over ten answers."""
    image = _picture(pictures, entry["image_id"] + ".jpg")
    return _row(entry["question_id"], entry["question"] + SHORT, image, "vqa", entry["answers"])


def refcoco(entry: Entry, pictures: Path) -> EvaluationRow:
    """RefCOCO, RefCOCO+ and RefCOCOg (Yu et al., ECCV 2016) as JSON lines, such as refcoco_testA.jsonl of Qwen-VL:
    "image" (whose file's name is looked up among the pictures), "sent", and "bbox" as left, top, right, bottom. The
    share of first boxes whose IoU is at least one half. The pickled refs(unc).p is not read: it could run code."""
    image = _picture(pictures, PureWindowsPath(entry["image"]).name)
    return _row(None, entry["sent"], image, "box", [entry["bbox"]])


def screenspot(entry: Entry, pictures: Path) -> EvaluationRow:
    """ScreenSpot (Cheng et al., ACL 2024) and ScreenSpot-v2: screenspot_mobile.json, _desktop.json or _web.json of
    github.com/njucckevin/SeeClick, and screenspot_imgs/; "bbox" is left, top, width, height. The share of boxes whose
    middle, the place of the click, lies in the wanted one. Groups are text and icon."""
    left, top, width, height = entry["bbox"]
    image, wanted = _picture(pictures, entry["img_filename"]), [[left, top, left + width, top + height]]
    return _row(None, entry["instruction"], image, "point", wanted, entry["data_type"])


def mmstar(entry: Entry, pictures: Path) -> EvaluationRow:
    """MMStar (Chen et al., NeurIPS 2024): MMStar.tsv, whose pictures are in it in base64. The share of answers that
    begin with the right letter. Groups are its six categories."""
    if None in entry or None in entry.values():
        raise ValueError("its cells are not those of the table's head")
    kind = "png" if base64.b64decode(entry["image"][:8]).startswith(b"\x89PNG") else "jpeg"
    image = f"data:image/{kind};base64,{entry['image']}"
    return _row(int(entry["index"]), entry["question"] + LETTER, image, "choice", entry["answer"], entry["category"])


FORMATS: dict[str, Callable[[Entry, Path], EvaluationRow]] = {
    **{"ocrbench": ocrbench, "docvqa": docvqa, "textvqa": textvqa},
    **{"refcoco": refcoco, "screenspot": screenspot, "mmstar": mmstar},
}
_FOLDERS = {"ocrbench": "OCRBench_Images", "textvqa": "train_images", "screenspot": "screenspot_imgs"}


def read_task(
    file: Path, form: str | None = None, pictures: Path | None = None, scoring: str | None = None
) -> list[EvaluationRow]:
    """The rows of a task file or of a benchmark's file.

    Args:
        file: JSON lines of this package, or what a benchmark publishes.
        form: one of `FORMATS`. None is this package's own.
        pictures: the folder of a benchmark's pictures. None is where the benchmark has them, beside the file.
        scoring: the rule of rows that name none, in this package's own form.

    Raises:
        OptionError: the file cannot be read or is empty, or the options do not belong together.
        PromptError: an entry is none of this form; it names its place.
    """
    if form is None:
        if pictures is not None:
            raise OptionError("pictures are for the file of a benchmark; paths of rows are relative to their file")
        if scoring is not None:
            check_rule(scoring)
        return read_rows(file, scoring)
    if form not in FORMATS:
        raise OptionError(f"format is {form!r}, expected one of {', '.join(FORMATS)}")
    if scoring is not None:
        raise OptionError(f"{form} has its own scoring; leave scoring out")
    folder = (pictures or file.parent / _FOLDERS.get(form, "")).absolute()
    if not folder.is_dir():
        raise OptionError(f"{folder}: no such folder of pictures; name the one that has those of {form}")

    def read(entry: Any, _: Path) -> EvaluationRow:
        try:
            return FORMATS[form](entry, folder)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise PromptError(f"is none of {form} ({what})") from None

    if file.suffix.lower() == ".jsonl":
        return [row.placed(number, f"{file}, line {number}") for number, row in each_row(file, read)]
    rows = []
    for number, entry in enumerate(_entries(file), 1):
        where = f"{file}, entry {number}"
        try:
            rows.append(read(entry, file.parent).placed(number, where))
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
    if not rows:
        raise OptionError(f"{file}: has no rows")
    return rows


def _entries(file: Path) -> list[Any]:
    """The entries of a JSON list, of the "data" of a JSON object, or of a table with tabs."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if file.suffix.lower() == ".tsv":
            return _table(text)
        data = parse_json(text)
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, csv.Error) as error:
        raise OptionError(f"{file}: is none of this format ({error})") from None
    entries = data.get("data") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise OptionError(f'{file}: is none of this format (neither a list nor an object with the list "data")')
    return entries


def _table(text: str) -> list[Any]:
    """The rows of a table with tabs, by the names in its head. Raises `csv.Error`."""
    limit = csv.field_size_limit(_FIELD_BYTES)  # one for the whole process
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    finally:
        csv.field_size_limit(limit)


def _picture(folder: Path, name: str) -> str:
    """The path of a picture in a folder, by a name with the separators of any system. Raises `ValueError` for one that
    leads out of it."""
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or not path.parts:
        raise ValueError(f"its picture {name!r} is not in the folder of pictures")
    return str(folder.joinpath(*path.parts))


def _row(key: Any, prompt: str, image: str, rule: str, accepted: Any, group: str = "") -> EvaluationRow:
    if not isinstance(prompt, str) or not isinstance(group, str):
        raise ValueError("its question or its group is no text")
    made = boxes(accepted) if rule in BOXES else texts(accepted, blanks=rule == "vqa")
    return EvaluationRow(key, conversation(prompt, [image]), rule, made, group)
