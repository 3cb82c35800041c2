"""Model cards: their metadata read as if a stranger had written it, and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ANCHOR = re.compile(r"(?<![A-Za-z0-9])&[\w-]")  # by which a few bytes of YAML stand for gigabytes


def card_metadata(text: str) -> dict[str, Any]:
    """What the head of a model card says, by its keys, read by safe YAML; nothing for a card without a head, or with
    one that is damaged or has anchors. `text` is the beginning of the card, whose length bounds the work: YAML takes
    about 10 seconds a megabyte."""
    from huggingface_hub import RepoCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    head = REGEX_YAML_BLOCK.search(text)
    if head is None or _ANCHOR.search(head[0]):
        return {}
    try:
        # ModelCard would also read evaluation results, and warn of those that it cannot read
        return dict(RepoCard(head[0]).data.to_dict())
    except Exception:  # errors of YAML, of numbers and dates, of keys that are no names
        return {}


def write_model_card(file: Path, metadata: Mapping[str, Any], text: str) -> None:
    """Writes a model card of metadata and Markdown. Raises `OSError` if the disk does."""
    from huggingface_hub import ModelCard, ModelCardData

    ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}").save(file)
