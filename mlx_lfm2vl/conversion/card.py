"""README.md of a converted folder: metadata that the hub understands, how to use it, what quantising cost.

Licence, languages and the base model come from the source's own card, so that nothing is claimed that it does not say.
huggingface_hub reads and writes the metadata. A stranger's card costs little: only its beginning is read, and a head
that cannot be read says nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.nn as nn

from .. import __version__
from ..config import ModelConfig, config_in
from ..config.files import check_own, open_regular
from ..errors import OutputError, counted
from ..hub import card_metadata, is_repository, of_page, write_model_card
from ..weights.load import open_model
from ..weights.quantize import widths
from .families import RULES
from .plot import CURVE_FILE, ERRORS_FILE
from .report import QuantizationReport

LICENCE_KEYS = ("license", "license_name", "license_link")
RELATIONS = ("finetune", "merge", "quantized")  # the hub's words for how whole weights come from their base model
DEFAULT_ORGANISATION = "LiquidAI/"  # whose models have the licence below, should their card not have come along
HOUSE_LICENCE = {"license": "other", "license_name": "lfm1.0", "license_link": "LICENSE"}
PARTS = {  # that are often not quantised as the layers of the text are
    "vision tower": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "embeddings": "model.language_model.embed_tokens",
    "head": "lm_head",
}
USES = (  # where a card says the model's name
    "# {}",
    'mlx-lfm2vl generate --model {} --image photo.jpg --prompt "What is in this picture?"',
    'load("{}")',
    'python -m mlx_vlm.generate --model {} --image photo.jpg --prompt "What is in this picture?"',
    'mlx-lfm2vl generate --model {} --prompt "What is a neural network?"',  # of a text model
)
INSTALL = (  # until the package is on an index
    "mlx-lfm2vl is on no package index yet. In a clone of its repository:\n\n```console\n$ pip install .\n```"
)
MLX_VLM = "mlx-vlm loads the folder too:\n\n```console\n$ pip install mlx-vlm\n$ {}\n```"
CHECKED = (
    "Before this folder got its name, mlx-lfm2vl read it as it loads it: configuration, names and shapes of all "
    "tensors, the index, tokenizer, template and processor files."
)
ELSEWHERE = (
    " The tests of mlx-lfm2vl run folders of this kind in "
    "mlx-vlm 0.7.10, and decode their JSON files by the rules of mlx-swift-lm's source; this folder itself was not run "
    "there."
)
SWIFT_HEAD = (
    " mlx-swift-lm has no place for this model's head, which differs from its embeddings, so the folder cannot be used "
    "there."
)
SWIFT_IMAGE_TOKEN = 396  # of its processor, whatever config.json says
_OF_FILES = re.compile(
    r"transformers|safetensors|pytorch|tf|jax|onnx|gguf|mlx-vlm|base_model:.*|license:.*|region:.*|\d+-bit", re.I
)
MOST_OF_A_CARD = 2**16  # bytes that are looked at; the head stands at the beginning


@dataclass(frozen=True)
class CardSource:
    """The origin of the weights: a repository's name or None, and the front matter of its card."""

    repository: str | None
    front_matter: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | os.PathLike[str], folder: Path) -> CardSource:
        """The source that `convert` was given, resolved to `folder`. Raises `OutputError` for a card that lies
        elsewhere."""
        name, _ = of_page(os.fspath(source))
        found = is_repository(name) and not Path(name).expanduser().is_dir()
        return cls(name if found else None, front_matter(_beginning(folder / "README.md")))

    @property
    def base_model(self) -> str | None:
        """The original: what a converted source names as its base, else the source itself. Of a folder that is not
        converted, and so has no name, what its card says that it was made from."""
        return (self.named_base if self.is_converted or self.repository is None else None) or self.repository

    @property
    def named_base(self) -> str | None:
        """The repository that the card names first as the base model."""
        base = next(iter(_items(self.front_matter.get("base_model"))), "")
        return base if is_repository(base) else None

    @property
    def is_converted(self) -> bool:
        return "mlx" in {self.front_matter.get("library_name"), *_items(self.front_matter.get("tags"))}

    @property
    def is_base(self) -> bool:
        """Whether `base_model` is what was converted, and not what that was made from."""
        return self.base_model is not None and (self.is_converted or self.repository is not None)

    def relation(self, fused: bool) -> str | None:
        """How the result comes from `base_model`, in the hub's words: a conversion is "quantized", dense too. A folder
        without a name stands to its base as its card says, else as a fine-tune."""
        if self.base_model is None:
            return None
        if self.is_base:
            return "finetune" if fused else "quantized"
        said = self.front_matter.get("base_model_relation")
        return said if said in RELATIONS else "finetune"


def front_matter(text: str) -> dict[str, Any]:
    """The strings and lists of strings of a card's metadata; what is nested is left out."""
    out: dict[str, Any] = {}
    for key, value in card_metadata(text).items():
        items = value if isinstance(value, list) else [value]
        texts = ["no" if item is False else item for item in items]  # YAML takes the code of Norwegian for false
        if texts := [item for item in texts if isinstance(item, str)]:
            out[key] = texts if isinstance(value, list) else texts[0]
    return out


def _beginning(readme: Path) -> str:
    if not readme.is_file():
        return ""
    check_own(readme)
    try:
        with open_regular(readme) as stream:
            return stream.read(MOST_OF_A_CARD).decode("utf-8", "replace")
    except OSError as error:
        raise OutputError(f"{readme}: cannot be read ({error.strerror or error})") from None


def _items(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def write_card(
    folder: Path,
    source: CardSource,
    name: str,
    report: QuantizationReport | None = None,
    before: Mapping[str, Any] | None = None,
    fused: bool = False,
    remark: str = "",
) -> None:
    """Writes README.md for the finished weights in `folder`; `name` is how commands will call the model, `before` the
    source's own record of what was quantised, `fused` whether an adapter is in them, `remark` what is to be said of
    it."""
    config = config_in(folder)
    head = {
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text" if config.placeholders else "text-generation",
        **_licence(folder, source),
        "language": _items(source.front_matter.get("language")) or ["en"],
        "base_model": source.base_model,
        "base_model_relation": source.relation(fused),
        "datasets": _items(source.front_matter.get("datasets")) or None,
        "tags": _tags(source, config),
    }
    base, pictures = source.base_model, bool(config.placeholders)
    asked = '"What is in this picture?", images=["photo.jpg"]' if pictures else '"What is a neural network?"'
    elsewhere = RULES[type(config)].runs_elsewhere
    linked = f"[{base}](https://huggingface.co/{base})"
    made_from = f", which was made from {linked}," if base else ""
    origin = linked if source.is_base else f"a local checkpoint{made_from}"
    earlier = (
        f" The source was not dense: {_described_record(before)} What that lost is not regained." if before else ""
    )
    parts = [
        USES[0].format(name),
        f"{'Fused with an adapter' if fused else 'Converted'} from {origin} for Apple's MLX with mlx-lfm2vl "
        f"{__version__}. {_described(config)}{_other_widths(folder, config)}"
        f"{earlier}{f' {remark[0].upper()}{remark[1:]}.' if remark else ''}",
        "## Use\n\n"
        f"{INSTALL}\n\n"
        f"```console\n$ {USES[1 if pictures else 4].format(name)}\n```\n\n"
        "```python\nfrom mlx_lfm2vl import generate, load\n\n"
        f"model, processor = {USES[2].format(name)}\n"
        f"print(generate(model, processor, {asked}))\n```",
        *([MLX_VLM.format(USES[3].format(name))] if elsewhere else []),
        CHECKED + (ELSEWHERE + _unfit_for_swift(config) if elsewhere else ""),
    ]
    if report is not None:
        parts.append(f"## What quantising cost\n\n{report.markdown()}")
        parts.append(
            "Bits a weight are the mean of all parts. Both models answered the same questions; distributions are "
            "compared on the dense model's greedy answers. `quantization_report.json` has these numbers and "
            "every module's."
        )
        if changes := report.markdown_changes():
            parts.append(changes)
        if (folder / ERRORS_FILE).is_file():
            parts.append(f"![Relative weight error of each module]({ERRORS_FILE})")
    if (folder / CURVE_FILE).is_file():
        parts.append(
            "The bits of each module were found by measurement (`quantization_search.json`):\n\n"
            f"![Size against divergence]({CURVE_FILE})"
        )
    write_model_card(folder / "README.md", head, "\n\n".join(parts) + "\n")


def _unfit_for_swift(config: ModelConfig) -> str:
    """The reason that keeps mlx-swift-lm from running a model that other programs run, if anything does."""
    said = "" if config.tie_word_embeddings else SWIFT_HEAD
    if config.image_token_id != SWIFT_IMAGE_TOKEN:
        said += (
            f" mlx-swift-lm takes {SWIFT_IMAGE_TOKEN} for the image token, which is {config.image_token_id} here, so "
            "it answers without the picture or ends."
        )
    return said


def _licence(folder: Path, source: CardSource) -> dict[str, str]:
    said = {key: source.front_matter[key] for key in LICENCE_KEYS if isinstance(source.front_matter.get(key), str)}
    if said:
        link = said.get("license_link", "")
        there = "://" in link or os.path.isfile(folder / link)  # unlike Path's own, it raises for no name
        return said if there else {key: value for key, value in said.items() if key != "license_link"}
    if (source.base_model or "").startswith(DEFAULT_ORGANISATION):
        return HOUSE_LICENCE
    files = sorted(path.name for pattern in ("LICENSE*", "LICENCE*") for path in folder.glob(pattern))
    return {"license": "other", "license_link": files[0]} if files else {}


def _tags(source: CardSource, config: ModelConfig) -> list[str]:
    """Ours, and those of the source that say what the model is for, and not which program's files it had."""
    bits = (config.quantization or {}).get("bits")
    sees = ["vision-language"] if config.placeholders else []
    own = ["mlx", "mlx-lfm2vl", config.model_type, *sees, *([f"{bits}-bit"] if bits else [])]
    kept = (tag for tag in _items(source.front_matter.get("tags")) if not _OF_FILES.fullmatch(tag))
    return list(dict.fromkeys([*own, *kept]))


def renamed(card: str, name: str) -> str:
    """A card of `write_card` with the model's name in its heading and commands; another card as it is."""
    heading = re.search(r"^# (.+)$", card, re.M)
    if heading is None or not all(use.format(heading[1]) in card for use in (USES[0], USES[2])):
        return card
    for use in USES:
        card = card.replace(use.format(heading[1]), use.format(name))
    return card


def _described(config: ModelConfig) -> str:
    if not config.quantization:
        return f"The weights are dense ({config.dtype})."
    return f"{_described_record(config.quantization)} config.json records the width of every module."


def _other_widths(folder: Path, config: ModelConfig) -> str:
    """The parts of a quantised model that are not at the width that the record says first, if any."""
    bits = (config.quantization or {}).get("bits")
    if bits is None or not any(folder.glob("*.safetensors")):
        return ""
    model: nn.Module
    model, stored = open_model(folder)
    others = []
    for part, prefix in PARTS.items():
        paths = [path for path in widths(model) if path.startswith(prefix)]
        found = {stored.widths[path].bits if path in stored.widths else 0 for path in paths}
        if found - {bits}:
            said = " and ".join("dense" if each == 0 else f"{each} bits" for each in sorted(found))
            others.append(f"the {part} ({said})")
    return f" Other widths: {', '.join(others)}." if others else ""


def _described_record(record: Mapping[str, Any]) -> str:
    others = [entry for entry in record.values() if isinstance(entry, Mapping)]
    mixed = sorted({f"{entry.get('bits')} bits" for entry in others})
    also = f" ({' or '.join(mixed)} in {counted(len(others), 'module')})" if others else ""
    if "bits" not in record:
        return f"{counted(len(others), 'module', be=True)} quantised to {' or '.join(mixed)}."
    return (
        f"Quantised to {record['bits']} bits in groups of {record.get('group_size')}, mode "
        f"{record.get('mode', 'affine')}{also}."
    )
