"""The keyword arguments of public functions that pass them on, so that type checkers know them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from ..models.dspark import DSparkDraftModel
from ..processing.fetch import SourcePolicy
from .logits_process import LogitsProcessor
from .options import GenerationOptions
from .prompt_cache import PromptCache
from .speculation import Draft
from .vision_cache import VisionCache
from .watch import Progress, Stop

Role = Literal["user", "tool"]


class ImageOverrides(TypedDict, total=False):
    """Fields of `ImageProcessorConfig`, for one call; None leaves the checkpoint's."""

    downsample_factor: int | None
    do_image_splitting: bool | None
    min_tiles: int | None
    max_tiles: int | None
    use_thumbnail: bool | None
    min_image_tokens: int | None
    max_image_tokens: int | None
    encoder_patch_size: int | None
    tile_size: int | None
    max_pixels_tolerance: float | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    do_pad: bool | None
    color_management: bool | None
    exif: bool | None


class PixelOverrides(TypedDict, total=False):
    """Fields of `Lfm3VlImageProcessorConfig` that LFM2-VL's has not, for one call; None leaves the checkpoint's."""

    patch_size: int | None
    temporal_patch_size: int | None
    merge_size: int | None
    min_pixels: int | None
    max_pixels: int | None
    size: Mapping[str, int] | None


class PictureOverrides(ImageOverrides, PixelOverrides, total=False):
    """The picture policy of any family, for one call."""


class ProcessorArguments(PictureOverrides, total=False):
    """Options of a processor that is loaded."""

    source_policy: SourcePolicy
    chat_template: str | None
    padding_side: Literal["left", "right"] | None
    use_image_special_tokens: bool | None


class OptionFields(TypedDict, total=False):
    """Fields of `GenerationOptions`, for one call."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    min_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    seed: int | None
    logprobs: bool
    top_logprobs: int
    response_format: Any
    logit_bias: Mapping[int, float]
    frequency_penalty: float
    presence_penalty: float
    logits_processors: Sequence[LogitsProcessor]
    draft: Literal["ngram", "auto"] | Draft | DSparkDraftModel | None


class CallOverrides(PictureOverrides, OptionFields, total=False):
    """Options of one call."""


class ConversationArguments(PictureOverrides, total=False):
    """Options of a chat."""

    system: str | None
    tools: Sequence[Mapping[str, Any]] | None
    options: GenerationOptions | None
    control_tokens: bool


class PromptArguments(ConversationArguments, total=False):
    """Options of one request."""

    videos: Any
    progress: Progress | None


class GenerateArguments(PromptArguments, OptionFields, total=False):
    """Options of `stream_generate`."""

    vision_cache: VisionCache | None
    prompt_cache: PromptCache | None
    stop: Stop | None


class RetryArguments(TypedDict, total=False):
    """Options of a turn that is answered anew."""

    options: GenerationOptions | None
    stop: Stop | None
    progress: Progress | None


class TurnArguments(RetryArguments, total=False):
    """Options of a turn."""

    videos: Any
    role: Role
