"""README.md of a converted folder: metadata that the hub understands, how to use it, what quantising cost.

Licence, languages and the base model come from the source's own card, so that nothing is claimed that it does not say.
huggingface_hub reads and writes the metadata. A stranger's card costs little: only its beginning is read, and a head
that cannot be read says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import Lfm2VlConfig, read_json
from ..config.files import check_own, open_regular
from ..errors import OutputError
from ..hub import card_metadata, is_repository, of_page, write_model_card
from .plot import CURVE_FILE, ERRORS_FILE
from .report import QuantizationReport

LICENCE_KEYS = ("license", "license_name", "license_link")
DEFAULT_ORGANISATION = "LiquidAI/"  # whose models have the licence below, should their card not have come along
HOUSE_LICENCE = {"license": "other", "license_name": "lfm1.0", "license_link": "LICENSE"}
MOST_OF_A_CARD = 2**16  # bytes that are looked at; the head stands at the beginning


@dataclass(frozen=True)
class CardSource:
    """Where the weights came from: a repository's name or None, and the front matter of its card."""

    repository: str | None
    front_matter: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | os.PathLike[str], folder: Path) -> CardSource:
        """Of what `convert` was given, resolved to `folder`. Raises `OutputError` for a card that lies elsewhere."""
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
        with os.fdopen(open_regular(readme), "rb") as stream:
            return stream.read(MOST_OF_A_CARD).decode("utf-8", "replace")
    except OSError as error:
        raise OutputError(f"{readme}: cannot be read ({error.strerror or error})") from None


def _items(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def write_card(folder: Path, source: CardSource, name: str, report: QuantizationReport | None = None) -> None:
    """Writes README.md for the finished weights in `folder`; `name` is how commands will call the model."""
    config = Lfm2VlConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    head = {
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text",
        **_licence(folder, source),
        "language": _items(source.front_matter.get("language")) or ["en"],
        "base_model": source.base_model,
        "base_model_relation": "quantized" if source.is_base and config.quantization else None,
        "tags": ["mlx", "mlx-lfm2vl", "lfm2_vl", "vision-language", *_width_tag(config)],
    }
    base = source.base_model
    linked = f"[{base}](https://huggingface.co/{base})"
    made_from = f", which was made from {linked}," if base else ""
    origin = linked if source.is_base else f"a local checkpoint{made_from}"
    parts = [
        f"# {name}",
        f"Converted from {origin} for Apple's MLX with mlx-lfm2vl {__version__}. {_described(config)}",
        "## Use\n\n"
        "```console\n$ pip install mlx-lfm2vl\n"
        f'$ mlx-lfm2vl generate --model {name} --image photo.jpg --prompt "What is in this picture?"\n```\n\n'
        "```python\nfrom mlx_lfm2vl import generate, load\n\n"
        f'model, processor = load("{name}")\n'
        'print(generate(model, processor, "What is in this picture?", images=["photo.jpg"]))\n```\n\n'
        "The folder also loads in mlx-vlm.",
    ]
    if report is not None:
        parts.append(f"## What quantising cost\n\n{report.markdown()}")
        parts.append(
            "Both models answered the same questions; distributions are compared on the dense model's greedy answers. "
            "`quantization_report.json` has these numbers and every module's."
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


def _width_tag(config: Lfm2VlConfig) -> list[str]:
    bits = (config.quantization or {}).get("bits")
    return [f"{bits}-bit"] if bits else []


def _described(config: Lfm2VlConfig) -> str:
    record = config.quantization
    if not record:
        return f"The weights are dense ({config.dtype})."
    others = [entry for entry in record.values() if isinstance(entry, Mapping)]
    mixed = sorted({f"{entry.get('bits')} bits" for entry in others})
    also = f" ({len(others)} modules have {' or '.join(mixed)})" if others else ""
    if "bits" not in record:
        return f"{len(others)} modules are quantised to {' or '.join(mixed)}; config.json records the width of each."
    return (
        f"Quantised to {record['bits']} bits in groups of {record.get('group_size')}, mode "
        f"{record.get('mode', 'affine')}{also}; config.json records the width of every module."
    )
