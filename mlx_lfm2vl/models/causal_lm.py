"""A text model alone: the backbone of LFM2 or LFM3 with its head, put together as within a vision-language model.

Its parameters have the names that they have there (`model.language_model.layers` ...), so that whatever reads,
quantises and changes those of such a model does so here.
"""

from __future__ import annotations

import mlx.nn as nn

from ..config import CausalLMConfig, Lfm3Config
from ..errors import InputError
from .lfm2 import Lfm2Model
from .lfm2_vl import Array, Lfm2VlForConditionalGeneration, Lfm2VlModel
from .lfm3 import Lfm3Model
from .outputs import ImageFeatures


class CausalLMModel(Lfm2VlModel):
    """The backbone, without the head."""

    def __init__(self, config: CausalLMConfig):
        nn.Module.__init__(self)
        self.config = config
        text = config.text_config
        self.language_model = Lfm3Model(text) if isinstance(text, Lfm3Config) else Lfm2Model(text)

    def get_image_features(
        self, pixel_values: Array, spatial_shapes: Array, pixel_attention_mask: Array | None = None
    ) -> ImageFeatures:
        """Raises `InputError`, as there is no vision tower."""
        raise InputError("pixel_values is given, but this model reads text alone; leave it out")

    def fuse(self) -> None:
        """As `Lfm2VlModel.fuse`."""
        self.fuse_text()


class ForCausalLM(Lfm2VlForConditionalGeneration):
    """The model with its head, tied to the embeddings or of its own (the reference's `Lfm2ForCausalLM` and
    `Lfm3ForCausalLM`)."""

    model_class = CausalLMModel
