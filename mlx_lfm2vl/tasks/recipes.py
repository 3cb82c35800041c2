"""How each checkpoint is asked and how it writes: the one table, a row a model.

The facts are those of the models' cards; the words are ours. A checkpoint is matched by the shape of its language
model, by its projector (LFM2-VL has a LayerNorm, LFM2.5-VL has none) and, where models of one shape differ, by its
name. The first row that matches counts. A fine-tune has its base's shape, so it is asked as its base. A new model is a
new row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ..config import ModelConfig
from ..errors import OptionError

Shape = tuple[int, int, int]  # hidden size, layers, vocabulary of the language model


@dataclass(frozen=True)
class BoxRecipe:
    """How boxes are asked for and written: a JSON list of objects, `[]` for none.

    `prompt` has `{what}` in it. `keys` are those of an object in their order: "label", `box`, that of [left, top,
    right, bottom], and maybe `image`, that of the picture's index from 0. Coordinates run from 0 to `scale`, a power of
    ten, over the picture's width and height; `step`, a power of ten, is the distance of two neighbours, None for any
    number. Raises `OptionError`.
    """

    prompt: str
    keys: tuple[str, ...]
    box: str
    scale: int
    step: int | None = None
    image: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        if sorted(self.keys) != sorted(key for key in ("label", self.box, self.image) if key is not None):
            raise OptionError(f"keys of a BoxRecipe are {self.keys!r}, expected 'label', box and image in their order")
        for name, value in (("scale", self.scale), ("step", 1 if self.step is None else self.step)):
            if value not in (10**power for power in range(7)) or value > self.scale:
                raise OptionError(f"{name} of a BoxRecipe is {value!r}, expected a power of ten, at most 1000000")


@dataclass(frozen=True)
class LayoutRecipe:
    """How text is asked for together with its place: a line `image_index=<n> <label> [left, top, right, bottom]` before
    each region, whole numbers from 0 to `scale`, and a blank line behind it."""

    prompt: str
    labels: tuple[str, ...]
    scale: int


@dataclass(frozen=True)
class Recipe:
    """A row of the table; a task whose field is None is not known to work with the model.

    `extract` names the way in which fields are asked for: "schema" puts the JSON schema into the prompt, "fields" a
    list of names and descriptions into the system prompt, "questions" asks one question a field. `read` is the prompt
    for text without layout.
    """

    name: str
    shapes: tuple[Shape, ...] = ()
    model_type: str = "lfm2_vl"
    projector_layernorm: bool | None = None  # None: either
    names: str | None = None  # a regular expression for the checkpoint's name
    boxes: BoxRecipe | None = None
    layout: LayoutRecipe | None = None
    read: str | None = "Read all text in the image. Answer with the text only."
    describe: str | None = "Describe the image."
    extract: Literal["schema", "fields", "questions"] | None = "schema"

    def matches(self, config: ModelConfig, name: str = "") -> bool:
        """Whether a checkpoint of this configuration and name is asked by this recipe."""
        text = config.text_config
        return (
            config.model_type == self.model_type
            and (not self.shapes or (text.hidden_size, text.num_hidden_layers, text.vocab_size) in self.shapes)
            and self.projector_layernorm in (None, getattr(config, "projector_use_layernorm", None))
            and (self.names is None or re.search(self.names, name, re.I) is not None)
        )


_450M: Shape = (1024, 16, 65536)
_1_6B: Shape = (2048, 16, 65536)
_3B: Shape = (2048, 30, 65536)
_LABELS = (
    *("text", "title", "list", "table", "table_caption", "table_footnote", "image", "image_block", "image_caption"),
    *("image_footnote", "chart", "equation", "formula_number", "code", "code_caption", "algorithm", "aside_text"),
    *("ref_text", "phonetic", "page_header", "page_footer", "page_number", "page_footnote"),
)

_BOXES = BoxRecipe(
    prompt="Provide bounding boxes for {what}.",
    keys=("image_id", "bbox_2d", "label"),
    box="bbox_2d",
    scale=1000,
    step=1,
    image="image_id",
    system=(
        'Answer with a JSON array of objects with the keys "image_id" (index of the image, from 0), "bbox_2d" '
        '([xmin, ymin, xmax, ymax], integers from 0 to 1000) and "label". Answer [] if nothing matches.'
    ),
)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="demo",
        shapes=((128, 6, 1380),),
        boxes=replace(_BOXES, prompt="Provide bounding boxes for the {what}.", step=10, system=None),
        read="Read the text.",
        extract="questions",
    ),
    Recipe(
        name="lfm2.5-vl-3b",
        shapes=((2048, 30, 128000),),
        boxes=_BOXES,
        layout=LayoutRecipe(
            prompt=(
                "Parse this document into its regions, in reading order. Write for each region a line\n"
                "image_index=<n> <label> [xmin, ymin, xmax, ymax]\n"
                "and below it the region's content; separate regions by one blank line. image_index counts the images "
                f"from 0, coordinates are integers from 0 to 1000, and the label is one of: {', '.join(_LABELS)}. Give "
                "equations as LaTeX, tables as OTSL, images and charts by a short description."
            ),
            labels=_LABELS,
            scale=1000,
        ),
    ),
    Recipe(
        name="lfm2.5-vl-extract", names=r"VL-[\d.]+[MB]-Extract", read=None, describe=None, extract="fields"
    ),  # trained to do nothing else
    Recipe(
        name="lfm2.5-vl-450m",
        shapes=(_450M,),
        projector_layernorm=False,
        boxes=BoxRecipe(
            prompt=(
                'Find {what}. Answer with a JSON list of objects {"label": "...", "bbox": [x1, y1, x2, y2]}, with '
                "coordinates from 0 to 1."
            ),
            keys=("label", "bbox"),
            box="bbox",
            scale=1,
        ),
    ),
    Recipe(name="lfm2-vl", shapes=(_450M, _1_6B, _3B)),  # LFM2-VL, and LFM2.5-VL-1.6B: no card of them speaks of boxes
    Recipe(name="lfm3-vl", model_type="lfm3_vl"),
)
_BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def choose(config: ModelConfig, name: str = "", recipe: Recipe | str | None = None) -> Recipe:
    """The recipe for a checkpoint: the given one (a row's name, or the caller's own), else the first row that matches.

    Args:
        config: of the checkpoint.
        name: its folder or repository, which tells apart checkpoints of one shape.
        recipe: overrides both.

    Raises:
        OptionError: there is none.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str) and recipe in _BY_NAME:
        return _BY_NAME[recipe]
    known = ", ".join(_BY_NAME)
    if recipe is not None:
        own = "" if isinstance(recipe, str) else "a Recipe or "
        raise OptionError(f"recipe is {recipe!r}, expected {own}one of {known}")
    found = next((row for row in RECIPES if row.matches(config, name)), None)
    if found is None:
        raise OptionError(f"no recipe is known for a model of this shape; give recipe=, one of {known}")
    return found
