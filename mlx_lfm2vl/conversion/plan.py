"""The bits of every module: options to a plan for every module, and the plan to config.json's record.

Names are those that MLX programs use (`language_model.model.layers.0.feed_forward.w2`). Vision tower and projector stay
dense unless asked for. What wins, weakest first: the uniform width, the recipe, the overrides in their order.

Recipes spend a few more bits where rounding hurts most. These are the embeddings, which are the head too in all public
models and so shape every logit; keys, values and gates of heads, which are narrow; and `feed_forward.w2` and the
output projection (`out_proj`, in LFM3's attention `o_proj`) of the first and the last eighth of the layers and of every
third between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import OptionError
from ..weights.choices import MODES, RECIPES
from ..weights.names import from_module
from ..weights.quantize import LANGUAGE, Quantization, record

SMALL = 1_000_000_000  # parameters; models below are kept from 4 bits unless they are asked for
VISION = ("vision_tower.", "multi_modal_projector.")
DENSE = "dense"


@dataclass(frozen=True)
class QuantizationOptions:
    """The quantisation that is asked for.

    `bits` None: what suits the model's size, or the mode's only width. `group_size` None: the mode's default. `recipe`:
    a name of `RECIPES`, instead of bits. `overrides`: (pattern, value) with a shell pattern over module names and a
    number of bits, "dense", or a mode's name; tower and projector only if the pattern begins with their name. `vision`:
    tower and projector too. Raises `OptionError`.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None
    overrides: Sequence[tuple[str, int | str]] = ()
    vision: bool = False

    def __post_init__(self) -> None:
        if self.recipe is not None:
            if self.recipe not in RECIPES:
                raise OptionError(f"q_recipe is {self.recipe!r}, expected one of {', '.join(RECIPES)}")
            if self.bits is not None or self.mode != "affine":
                raise OptionError(f"q_recipe {self.recipe} says the bits itself; leave q_bits and q_mode out")
        Quantization.checked(self.bits or (8 if self.mode == "affine" else None), self.group_size, self.mode)
        for pattern, value in self.overrides:
            self.override(pattern, value)

    def override(self, pattern: str, value: int | str) -> Quantization | None:
        """The width that an override asks for, None for dense."""
        if not pattern:
            raise OptionError(f"q_override {pattern!r}={value}: the pattern is empty")
        if value == DENSE:
            return None
        try:
            if isinstance(value, str) and value in MODES and value != "affine":
                return Quantization.checked(None, None, value)
            bits = value if isinstance(value, int) else int(value)
            group = self.group_size if self.mode == "affine" else None
            return Quantization.checked(bits, group)
        except ValueError:
            offered = ", ".join([*map(str, MODES["affine"][0]), *(m for m in MODES if m != "affine")])
            raise OptionError(f"q_override {pattern}={value}: expected {DENSE} or one of {offered}") from None


@dataclass(frozen=True)
class Plan:
    """The width of every module that the plan speaks of (None: dense), by path; `base` is that of most of them."""

    base: Quantization
    modules: dict[str, Quantization | None]
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """config.json's `quantization`, see `quantize.record`."""
        return record(self.base, self.modules)


def make_plan(widths: Mapping[str, int], parameters: int, options: QuantizationOptions) -> Plan:
    """The width of every module that the options reach. Modules whose rows no group divides stay dense.

    Args:
        widths: row lengths of all modules that can be quantised, by path.
        parameters: how many numbers the whole dense model has.
        options: what is asked for.

    Raises:
        OptionError: for a pattern without a match, or one that asks for what a module's rows do not allow.
    """
    base, notes = _base(parameters, options)
    wide = None if options.recipe is None else Quantization.checked(RECIPES[options.recipe][1], options.group_size)
    layers = 1 + max((_layer(path) for path in widths), default=0)
    modules: dict[str, Quantization | None] = {}
    for path, width in widths.items():
        if not (options.vision or path.startswith(LANGUAGE)):
            continue
        spec = wide if wide is not None and _is_wide(path, layers) else base
        modules[path] = None if width % spec.group_size else spec
    for pattern, value in options.overrides:
        reachable = [path for path in widths if path.startswith(LANGUAGE) or options.vision or _names_vision(pattern)]
        matches = [path for path in reachable if fnmatchcase(from_module(path, "mlx"), pattern)]
        if not matches:
            examples = ", ".join(sorted({from_module(path, "mlx") for path in reachable})[:2])
            raise OptionError(f"q_override {pattern!r} matches no module; there are {examples} ...")
        asked = options.override(pattern, value)
        for path in matches:
            if asked is not None and widths[path] % asked.group_size:
                raise OptionError(
                    f"q_override {pattern}={value}: {from_module(path, 'mlx')} has rows of {widths[path]}, "
                    f"not a multiple of the group size {asked.group_size}"
                )
            modules[path] = asked
    if not any(modules.values()):
        raise OptionError("no module would be quantised; choose a smaller q_group_size or other overrides")
    return Plan(base, modules, notes)


def _base(parameters: int, options: QuantizationOptions) -> tuple[Quantization, tuple[str, ...]]:
    """The uniform width, and what to tell about it."""
    if options.recipe is not None:
        return Quantization.checked(RECIPES[options.recipe][0], options.group_size), ()
    small, free = parameters < SMALL, options.bits is None and options.mode == "affine"
    bits = (8 if small else 4) if free else options.bits
    base = Quantization.checked(bits, options.group_size, options.mode)
    size = f"the model has {parameters / 1e6:.3g} million parameters, and below a billion answers drift at 4 bits"
    if small and free:
        return base, (f"8 bits chosen: {size} (--q-bits 4 insists, --q-recipe mixed_4_8 lies between)",)
    if small and base.bits <= 4:
        return base, (f"{size}; --q-bits 8 or --q-recipe mixed_4_8 keep it closer to the original",)
    return base, ()


def _names_vision(pattern: str) -> bool:
    """Whether an override is meant for tower or projector: it begins with their name, not with a wildcard."""
    head = re.split(r"[*?\[]", pattern)[0]
    return bool(head) and any(part.startswith(head) or head.startswith(part) for part in VISION)


def _layer(path: str) -> int:
    """The number of the language model's layer that a module is in, -1 for others."""
    head, _, rest = path.partition("model.language_model.layers.")
    return int(rest.split(".")[0]) if not head and rest else -1


def _is_wide(path: str, layers: int) -> bool:
    """Whether a recipe gives a module its higher width: as said above, and tower and projector where they are quantised
    at all."""
    layer, eighth = _layer(path), layers // 8
    if layer < 0 or path.endswith((".k_proj", ".v_proj", ".gate_proj")):
        return True
    placed = layer < eighth or layer >= layers - eighth or (layer - eighth) % 3 == 2
    return placed and path.endswith((".w2", ".out_proj", ".o_proj"))
