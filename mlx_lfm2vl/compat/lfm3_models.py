"""LFM3-VL's model classes of transformers, by name; what they can is that of LFM2-VL's."""

from __future__ import annotations

from ..models import lfm3_vl
from . import models
from .lfm3_processors import Lfm3VlConfig


class Lfm3VlModel(models.Lfm2VlModel, lfm3_vl.Lfm3VlModel):
    """The model without its head; see `models.Lfm3VlModel`. Arrays as those of `Lfm2VlModel`."""

    config_class = Lfm3VlConfig
    __call__ = forward = models.with_tensors(lfm3_vl.Lfm3VlModel.__call__)


class Lfm3VlForConditionalGeneration(models.Lfm2VlForConditionalGeneration, lfm3_vl.Lfm3VlForConditionalGeneration):
    """The model with its head; see `models.Lfm3VlForConditionalGeneration`. Arrays as those of `Lfm2VlModel`."""

    config_class = Lfm3VlConfig
    model_class = Lfm3VlModel
    __call__ = forward = models.with_tensors(lfm3_vl.Lfm3VlForConditionalGeneration.__call__)
