"""Whether the head of a folder is the embeddings or a tensor of its own: its files decide where config.json is unsure.

Adapters that train both, once merged, leave a head that differs from the embeddings under a config.json that ties them.
The reference keeps both then, and so does this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from ..config import ModelConfig
from .files import TensorInfo, reading

HEAD, EMBEDDINGS = "lm_head.", "model.language_model.embed_tokens."
TIED = ("tie_embedding", "tie_word_embeddings")


def with_embeddings(config: ModelConfig, names: Mapping[str, str]) -> dict[str, str]:
    """The names of a folder's tensors and of their parameters, where a head that is tied stands for embeddings that are
    not stored: of two names of one tensor some programs save either."""
    stored = any(module.startswith(EMBEDDINGS) for module in names.values())
    if stored or not config.tie_word_embeddings:
        return dict(names)
    return {
        name: EMBEDDINGS + module[len(HEAD) :] if module.startswith(HEAD) else module for name, module in names.items()
    }


def fit_head(
    config: ModelConfig, data: Mapping[str, Any], infos: Mapping[str, TensorInfo], names: Mapping[str, str]
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration with `tie_word_embeddings` as the files have it, in its text_config too, and a note where
    config.json says otherwise. What config.json (`data`) says at the top wins over its text_config; without a head in
    the files, what ties. `infos`: the tensors, by the names of the model's parameters; `names`: those in the files to
    these."""
    stored = HEAD + "weight" in infos
    top = next((data[key] for key in TIED if data.get(key) is not None), None)
    inner = [(data.get("text_config") or {}).get(key) for key in TIED]
    tied = config.tie_word_embeddings if stored else top is not False or True in inner
    differs = stored and tied and _differs(infos, names)
    tied = tied and not differs
    words = replace(config.text_config, tie_word_embeddings=tied)
    config = replace(config, tie_word_embeddings=tied, text_config=words)  # type: ignore[arg-type]
    note = "lm_head differs from the embeddings, which config.json ties to it; it is used"
    return config, (note,) if differs else ()


def _differs(infos: Mapping[str, TensorInfo], names: Mapping[str, str]) -> bool:
    """Whether the head has other tensors than the embeddings, or other numbers. Reads both if their shapes agree."""
    sources = {module: name for name, module in names.items()}
    head, embeddings = (
        {module[len(prefix) :]: info for module, info in infos.items() if module.startswith(prefix)}
        for prefix in (HEAD, EMBEDDINGS)
    )
    if {leaf: info.shape for leaf, info in head.items()} != {leaf: info.shape for leaf, info in embeddings.items()}:
        return True
    for leaf in head:
        with reading(head[leaf].file):
            arrays = []
            for module in (HEAD + leaf, EMBEDDINGS + leaf):
                loaded: Any = mx.load(str(infos[module].file))
                arrays.append(loaded[sources[module]])
            if not mx.array_equal(arrays[0], arrays[1], equal_nan=True).item():
                return True
    return False
