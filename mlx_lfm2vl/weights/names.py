"""Tensor names: one table of where each part of the model stands in each layout.

Inside the parts the names are the same everywhere. Layouts: as the makers publish (`hub`), as transformers 5 saves a
fresh model (`transformers`), as MLX programs write (`mlx`). The names of this package's modules are those of
`transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.causal_lm import bare
from ..errors import WeightsError

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # module prefix, prefixes in files; the first is `hub`, the second `transformers`, the third `mlx`, others were seen
    (
        "model.language_model.",
        ("model.language_model.", "model.language_model.", "language_model.model."),
    ),
    *(  # of LFM3-VL, whose tower the makers' repositories nest no deeper
        (f"model.vision_tower.{part}.", (f"model.vision_tower.{part}.",) * 2 + (f"vision_tower.{part}.",))
        for part in ("layers", "patchifier", "embedding_norm")
    ),
    (
        "model.vision_tower.",
        ("model.vision_tower.vision_model.", "model.vision_tower.", "vision_tower.", "vision_tower.vision_model."),
    ),
    (
        "model.multi_modal_projector.",
        ("model.multi_modal_projector.", "model.multi_modal_projector.", "multi_modal_projector."),
    ),
    (
        "lm_head.",
        ("lm_head.", "lm_head.", "language_model.lm_head.", "model.lm_head.", "model.language_model.lm_head."),
    ),
)
# The text model where it is not nested, or saved without its head: prefixes that its parts go on from.
BARE = ("model.", "language_model.")
TEXT_PARTS = ("embed_tokens.", "layers.", "embedding_norm.")
LAYOUTS = {"hub": 0, "transformers": 1, "mlx": 2}
LEAVES = {  # feed-forward names of some older ports
    "feed_forward.gate_proj.": "feed_forward.w1.",
    "feed_forward.up_proj.": "feed_forward.w3.",
    "feed_forward.down_proj.": "feed_forward.w2.",
}
# Tensors that no forward pass needs: tables that are computed anew, heads for pooling, rewards and classes.
UNNEEDED = re.compile(
    r"(^|\.)(rotary_emb\..+|inv_freq|position_ids|masked_bias)$"
    r"|(^|\.)(v_head|value_head|score|reward_head|regression_head|classifier|pooler)\..+$"
    r"|(^|\.)vision_tower\.(vision_model\.)?head\."
)
_BY_LENGTH = sorted(
    {(prefix, module) for module, prefixes in PARTS for prefix in prefixes}
    | {(prefix + part, "model.language_model." + part) for prefix in BARE for part in TEXT_PARTS},
    key=lambda pair: -len(pair[0]),
)


def to_module(name: str) -> str | None:
    """The module parameter that a tensor of this name fills; None for a name that no layout has."""
    for prefix, module in _BY_LENGTH:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            for old, new in LEAVES.items():
                if old in rest:
                    rest = rest.replace(old, new)
            return module + rest
    return None


def module_names(names: Iterable[str]) -> dict[str, str]:
    """Names in files to those of modules, without what is `UNNEEDED` or of no known layout. Raises `WeightsError` for
    two names of one tensor."""
    out: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        module = None if UNNEEDED.search(name) else to_module(name)
        if module is None:
            continue
        if module in seen:
            raise WeightsError(f"tensors {seen[module]} and {name} are the same parameter")
        out[name] = module
        seen[module] = name
    return out


def from_module(name: str, layout: str, text_only: bool = False) -> str:
    """The name of a module parameter (or of a module path) in a layout of `LAYOUTS`; of a text model alone, the names
    of all layouts are the same."""
    if text_only:
        return bare(name)
    for module, prefixes in PARTS:
        if name.startswith(module):
            return prefixes[LAYOUTS[layout]] + name[len(module) :]
        if name + "." == module:
            return prefixes[LAYOUTS[layout]][:-1]
    raise KeyError(name)


def is_conv_kernel(name: str) -> bool:
    """Whether a parameter is the kernel of a depthwise convolution: (hidden, 1, K ...) in torch, (hidden, K ..., 1) in
    MLX."""
    return name.endswith((".conv.conv.weight", ".spatial_conv.weight"))


def turned(kernel: mx.array) -> mx.array:
    """The kernel of a depthwise convolution as torch has it, of MLX's."""
    return mx.moveaxis(kernel, -1, 1)


def parameters(model: nn.Module) -> dict[str, mx.array]:
    """The parameters of a module by their names."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))
