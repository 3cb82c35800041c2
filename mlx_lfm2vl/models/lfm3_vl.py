"""LFM3-VL: its own vision encoder, projector and backbone, put together as LFM2-VL is.

A picture is one view. A video is a view for each pair of frames; its tokens stand in place of video tokens.
"""

from __future__ import annotations

from .lfm2_vl import Lfm2VlForConditionalGeneration, Lfm2VlModel
from .lfm3 import Lfm3Model
from .lfm3_vision import Lfm3VlMultiModalProjector, Lfm3VlVisionModel


class Lfm3VlModel(Lfm2VlModel):
    """Vision encoder, projector and backbone, without the head."""

    vision_class = Lfm3VlVisionModel
    projector_class = Lfm3VlMultiModalProjector
    text_class = Lfm3Model


class Lfm3VlForConditionalGeneration(Lfm2VlForConditionalGeneration):
    """The model with its language-modelling head, tied to the embeddings or of its own."""

    model_class = Lfm3VlModel
