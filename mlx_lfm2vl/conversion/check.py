"""Whether a folder is a whole model: what must hold before it gets its name, and before it is published."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import Lfm2VlError, OutputError, TemplateError, WeightsError
from ..processing.processor import Lfm2VlProcessor
from ..weights.files import read_headers, weight_files
from ..weights.load import open_model


def check_folder(folder: Path) -> list[str]:
    """Reads the folder as loading does, up to the weights' values; costs no memory. Returns remarks that stop nothing.

    Checked: configuration, tensors by name and shape, recorded quantisation, the index against the files, tokenizer,
    processor, and that the chat template places a picture. Raises the library's typed errors.
    """
    open_model(folder)
    check_index(folder)
    processor = Lfm2VlProcessor.from_pretrained(folder)
    remarks = list(processor.notes)
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    try:
        text = processor.template.render([{"role": "user", "content": content}], add_generation_prompt=True).text
    except TemplateError as error:
        remarks.append(f"no question can be asked of this model: {error}")
    else:
        if text.count(processor.image_token) != 1:
            remarks.append(f"the chat template writes {text.count(processor.image_token)} image tokens for one picture")
    return remarks


def check_index(folder: Path) -> None:
    """Raises `WeightsError` if model.safetensors.index.json is missing, or is not true of the files."""
    file = folder / "model.safetensors.index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{file}: is missing or cannot be read") from None
    true = {name: info.file.name for name, info in read_headers(weight_files(folder)).items()}
    if index != true:
        wrong = sorted(set(true.items()) ^ set(index.items()))[0][0]
        raise WeightsError(f"{file}: says {wrong} is in {index.get(wrong)}, the files say {true.get(wrong)}")


def check_result(folder: Path) -> list[str]:
    """As `check_folder`, for what a conversion has just written. Raises `OutputError`."""
    try:
        return check_folder(folder)
    except Lfm2VlError as error:
        raise OutputError(f"the converted folder would not load, so it is not kept: {error}") from error
