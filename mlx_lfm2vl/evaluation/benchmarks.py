"""Readers of public benchmarks, in the files that their makers publish, which the user has.

Each function takes such a file and the folder of its pictures, and makes rows with the benchmark's own rule. Where its
authors ask in no fixed words, the prompt is the one that is in use for short answers (LLaVA-1.5, lmms-eval).
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import OptionError, PromptError
from ..generation.messages import conversation
from ..processing.addresses import beside
from .rows import EvaluationRow, check_rule, read_rows

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
_FIELD_BYTES = 2**27  # of a picture in a table
Entry = Mapping[str, Any]


def ocrbench(entry: Entry, pictures: Path) -> EvaluationRow:
    """OCRBench (Liu et al., 2023): OCRBench.json and OCRBench_Images/ of github.com/Yuliang-Liu/MultimodalOCR. An
    answer is right if an accepted one stands in it; of 1000 questions the score is the sum. Groups are its ten types.
    """
    rule = "formula" if entry["dataset_name"] == "HME100k" else "contains"
    return _row(entry["id"], entry["question"], pictures / entry["image_path"], rule, entry["answers"], entry["type"])


def docvqa(entry: Entry, pictures: Path) -> EvaluationRow:
    """DocVQA (Mathew et al., WACV 2021): val_v1.0.json or val_v1.0_withQT.json of rrc.cvc.uab.es (challenge 17), and
    its folder documents/. The mean ANLS."""
    image = pictures / entry["image"]
    return _row(entry["questionId"], entry["question"] + SHORT, image, "anls", entry["answers"])


def textvqa(entry: Entry, pictures: Path) -> EvaluationRow:
    """TextVQA (Singh et al., CVPR 2019): TextVQA_0.5.1_val.json of textvqa.org, and its folder train_images/. The mean
    accuracy of VQA over ten answers."""
    image = pictures / f"{entry['image_id']}.jpg"
    return _row(entry["question_id"], entry["question"] + SHORT, image, "vqa", entry["answers"])


def refcoco(entry: Entry, pictures: Path) -> EvaluationRow:
    """RefCOCO, RefCOCO+ and RefCOCOg (Yu et al., ECCV 2016) as JSON lines, such as refcoco_testA.jsonl of Qwen-VL:
    "image" (whose file's name is looked up among the pictures), "sent", and "bbox" as left, top, right, bottom. The
    share of first boxes whose IoU is at least one half. The pickled refs(unc).p is not read: it could run code."""
    left, top, right, bottom = map(float, entry["bbox"])
    image = pictures / Path(entry["image"]).name
    return _row(None, entry["sent"], image, "box", [[left, top, right, bottom]])


def screenspot(entry: Entry, pictures: Path) -> EvaluationRow:
    """ScreenSpot (Cheng et al., ACL 2024) and ScreenSpot-v2: screenspot_mobile.json, _desktop.json or _web.json of
    github.com/njucckevin/SeeClick, and screenspot_imgs/; "bbox" is left, top, width, height. The share of boxes whose
    middle, the place of the click, lies in the wanted one. Groups are text and icon."""
    left, top, width, height = map(float, entry["bbox"])
    image, wanted = pictures / entry["img_filename"], [[left, top, left + width, top + height]]
    return _row(None, entry["instruction"], image, "point", wanted, entry["data_type"])


def mmstar(entry: Entry, pictures: Path) -> EvaluationRow:
    """MMStar (Chen et al., NeurIPS 2024): MMStar.tsv, whose pictures are in it in base64. The share of answers that
    begin with the right letter. Groups are its six categories."""
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
    folder = pictures or file.parent / _FOLDERS.get(form, "")
    rows = []
    for number, entry in enumerate(_entries(file), 1):
        try:
            rows.append(FORMATS[form](entry, folder))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise PromptError(f"{file}, entry {number}: is none of {form} ({what})") from None
    if not rows:
        raise OptionError(f"{file}: has no rows")
    return [row if row.id is not None else row.numbered(number) for number, row in enumerate(rows, 1)]


def _entries(file: Path) -> Iterator[Any]:
    """The entries of a JSON list, of the "data" of a JSON object, of JSON lines, or of a table with tabs."""
    try:
        if file.suffix.lower() == ".tsv":
            csv.field_size_limit(_FIELD_BYTES)
            with file.open(encoding="utf-8", newline="") as lines:
                yield from csv.DictReader(lines, delimiter="\t")
            return
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".jsonl":
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
            return
        data = json.loads(text)
        yield from data["data"] if isinstance(data, dict) and isinstance(data.get("data"), list) else data
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise OptionError(f"{file}: is none of this format ({error})") from None


def _row(key: Any, prompt: str, image: Path | str, rule: str, accepted: Any, group: str = "") -> EvaluationRow:
    given = accepted if isinstance(accepted, list) else [accepted]
    if not given or not isinstance(prompt, str) or not isinstance(group, str):
        raise ValueError("no question, or no accepted answer")
    made = tuple(tuple(each) if isinstance(each, list) else str(each) for each in given)
    return EvaluationRow(key, conversation(prompt, [beside(str(image), Path())]), rule, made, group)
