"""Whether a folder is a whole model: what must hold before it gets its name, and before it is published."""

from __future__ import annotations

from pathlib import Path

from ..config import GenerationConfig, config_in, read_json, shown
from ..errors import ConfigError, Lfm2VlError, OutputError, TemplateError, WeightsError
from ..processing.processor import Lfm2VlProcessor
from ..processing.template import named_templates
from ..processing.text_only import TextProcessor
from ..weights.load import open_model
from ..weights.shards import read_shards

TEMPLATES = ("chat_template.jinja", "chat_template.json")


def check_folder(folder: Path) -> list[str]:
    """Reads the folder as loading does, up to the weights' values; costs no memory. Returns remarks that stop nothing.

    Checked: configuration, tensors by name and shape, recorded quantisation, the index against the files, and what
    `check_texts` checks. Raises the library's typed errors.
    """
    open_model(folder)
    check_index(folder)
    return check_texts(folder)


def check_texts(folder: Path) -> list[str]:
    """Sampling, tokenizer, processor and chat template: whether they can be read, and what is remarkable about them.

    A template that is missing, or that refuses or places no picture, is a remark; one that is damaged is an error like
    any damaged file. Raises the library's typed errors."""
    if (file := folder / "generation_config.json").is_file():
        GenerationConfig.from_dict(read_json(file), str(file))
    text_only = not config_in(folder).placeholders
    processor = (TextProcessor if text_only else Lfm2VlProcessor).from_pretrained(folder)
    remarks = list(processor.notes)
    if not has_template(folder):
        return [*remarks, f"no question can be asked of this model: {folder.name} has no chat template"]
    template = processor.template
    question = "What is this?"
    content = question if text_only else [{"type": "image"}, {"type": "text", "text": question}]
    try:
        text = template.render([{"role": "user", "content": content}], add_generation_prompt=True).text
    except TemplateError as error:
        return [*remarks, f"no question can be asked of this model: {error}"]
    if not text_only and text.count(processor.image_token) != 1:
        remarks.append(f"the chat template writes {text.count(processor.image_token)} image tokens for one picture")
    return remarks


def has_template(folder: Path) -> bool:
    """Whether there is a chat template in any of the places where it may be. Raises `ConfigError`."""
    file = folder / "tokenizer_config.json"
    return named_templates(folder, read_json(file).get("chat_template") if file.is_file() else None)[1] is not None


def check_index(folder: Path) -> None:
    """Raises `WeightsError` if model.safetensors.index.json is missing, or is not true of the files."""
    file = folder / "model.safetensors.index.json"
    try:
        data = read_json(file)
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    index, metadata = data.get("weight_map"), data.get("metadata")
    if not isinstance(index, dict):
        raise WeightsError(f"{file}: has no weight_map that says which file a tensor is in")
    headers = read_shards(folder).tensors
    true = {name: info.file.name for name, info in headers.items()}
    for name in sorted(true.keys() | index.keys()):
        if index.get(name) != true.get(name):
            said = shown(index.get(name))
            raise WeightsError(f"{file}: says {shown(name)} is in {said}, the files say {shown(true.get(name))}")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if size is not None and size != (total := sum(info.nbytes for info in headers.values())):
        raise WeightsError(f"{file}: says that all tensors are {shown(size)} bytes, the files say {total}")


def check_result(folder: Path, target: Path) -> list[str]:
    """As `check_folder`, for what a conversion has just written and will be called `target`. Raises `OutputError`."""
    try:
        remarks = check_folder(folder)
    except Lfm2VlError as error:
        reason = str(error).replace(str(folder), str(target))
        raise OutputError(f"the converted folder would not load, so it is not kept: {reason}") from error
    return [remark.replace(str(folder), str(target)).replace(folder.name, target.name) for remark in remarks]
