"""Processors of LFM3-VL: a picture is one view, a video a view for each pair of frames; patches lie in the order of the
blocks that become one token.

The chat template writes the tokens around pictures; of an image token the processor makes as many as the picture has,
of a video token the times of its frames and their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..config import Lfm3VlImageProcessorConfig, Lfm3VlProcessorConfig, Lfm3VlVideoProcessorConfig
from ..errors import ImageError, OptionError
from . import lfm3_geometry
from .batch_feature import BatchFeature
from .fetch import SourcePolicy
from .image_processor import ImageProcessor, cut, write_patches
from .processor import Lfm2VlProcessor
from .prompt import ImageMarkup, replace_videos
from .video import Video, held
from .view_plan import VideoPlan, ViewPlan

TOKENS = {  # the reference's, where the tokenizer names none
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
VIDEO_INPUTS = ("pixel_values_videos", "video_grid_thw")


class Lfm3VlImageProcessor(ImageProcessor):
    """Turns pictures into what the vision encoder takes, with the numbers of the reference's `Qwen2VLImageProcessor`.
    A patch is flattened as (channel, frame, y, x); a picture is so many equal frames."""

    config_class = Lfm3VlImageProcessorConfig
    files_class = Lfm3VlProcessorConfig
    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_grid_thw"]

    def model_inputs(self, arrays: BatchFeature, plans: Sequence[ViewPlan]) -> BatchFeature:
        """Patches of all pictures, one after the other, "pixel_values" (patches, numbers of a patch) float32, and their
        grids, "image_grid_thw" (pictures, 3) int64: 1, rows, columns. Of videos "pixel_values_videos" and
        "video_grid_thw" (videos, 3): groups of frames, rows, columns."""
        kinds = [isinstance(plan, VideoPlan) for plan in plans]
        of_views = np.repeat(kinds, [len(plan.spatial_shapes) for plan in plans])
        made = BatchFeature()
        for kind, patches, grids in ((False, "pixel_values", "image_grid_thw"), (True, *VIDEO_INPUTS)):
            if kind not in kinds:
                continue
            chosen, counts = np.flatnonzero(of_views == kind), arrays["spatial_shapes"].prod(axis=1)
            made[patches] = np.concatenate([arrays["pixel_values"][view][: counts[view]] for view in chosen])
            own = [plan for plan in plans if isinstance(plan, VideoPlan) == kind]
            made[grids] = np.array([(len(plan.spatial_shapes), *plan.spatial_shapes[0]) for plan in own], np.int64)
        return made

    def _views(self, source: Any, config: Any) -> tuple[list[np.ndarray], ViewPlan]:
        """As `ImageProcessor`; of a video, (frames, height, width, 3) uint8 for each group of frames."""
        if not isinstance(source, Video):
            return super()._views(source, config)
        frames, _, plan = seen(source, config.video)
        group = config.video.temporal_patch_size
        frames += frames[-1:] * (-len(frames) % group)
        return [np.stack(frames[n : n + group]) for n in range(0, len(frames), group)], plan

    def _arrays(self, views: Sequence[np.ndarray], shapes: np.ndarray, config: Lfm3VlImageProcessorConfig) -> Any:
        """Padded to the largest view."""
        frames, side, merge = config.temporal_patch_size, config.patch_size, config.merge_size
        width = 3 * frames * side**2
        pixels = np.zeros((len(shapes), int(shapes.prod(axis=1).max()), width), dtype=np.float32)
        patches = []
        for view in views:
            moving = view if view.ndim == 4 else np.broadcast_to(view, (frames, *view.shape))
            rows, columns = view.shape[-3] // config.cell, view.shape[-2] // config.cell
            blocks = moving.reshape(frames, rows, merge, side, columns, merge, side, 3)
            patches.append(blocks.transpose(1, 4, 2, 5, 7, 0, 3, 6))
        colours = np.repeat(np.arange(3), frames * side**2)
        for axes, policy in ((3, config), (4, config.video)):
            chosen = [at for at, view in enumerate(views) if view.ndim == axes]
            write_patches([patches[at] for at in chosen], colours, policy, [pixels[at] for at in chosen])
        return BatchFeature(pixel_values=pixels, spatial_shapes=shapes)


def seen(video: Video, config: Lfm3VlVideoProcessorConfig) -> tuple[list[np.ndarray], tuple[int, int], VideoPlan]:
    """The frames of a video that are sampled, each resized to (height, width, 3) uint8 as it is read; the size (height,
    width) from which theirs is computed; the plan. Raises `ImageError`."""
    indices = video.indices(*_sampling(config))
    frames, size, plan = list[np.ndarray](), video.size, None
    for frame in video.read(indices):
        if plan is None:
            size = size or (frame.height, frame.width)
            plan = lfm3_geometry.video_plan(video.times(indices), *size, config)
        frames += cut(frame, plan, config)
    if size is None or plan is None:
        raise ImageError(f"{video.label}: has no frames")
    return frames, size, plan


def _sampling(config: Lfm3VlVideoProcessorConfig) -> tuple[float, int, int]:
    return config.fps, config.min_frames, config.max_frames


class VideoMarkup(ImageMarkup):
    """The second placeholder is that of videos, which are written so: before each group of frames its time, then its
    tokens between `start` and `end`."""

    def expand(self, plan: ViewPlan) -> str:
        """The text of one picture or video."""
        if not isinstance(plan, VideoPlan):
            return super().expand(plan)
        tokens = f"{self.start}{self.placeholders[1] * plan.tokens_for_image}{self.end}"
        return "".join(f"<{time:.1f} seconds>{tokens}" for time in plan.times)


class Lfm3VlProcessor(Lfm2VlProcessor):
    """A checkpoint's `PromptEncoder`, called as the reference's `Lfm3VlProcessor` is."""

    image_processor_class = Lfm3VlImageProcessor
    frames_as_pictures: ClassVar[bool] = False

    @property
    def image_token(self) -> str:
        """The token that stands for a picture."""
        return self._token("image_token")

    @property
    def video_token(self) -> str:
        """The token that stands for a video."""
        return self._token("video_token")

    @property
    def video_token_id(self) -> int:
        """Raises `TokenizerError` if the tokenizer does not know the token."""
        return self.tokenizer.id_of(self.video_token, "video_token")

    @property
    def vision_start_token(self) -> str:
        """The token before a picture, and before each group of a video's frames."""
        return self._token("vision_start_token")

    @property
    def vision_start_token_id(self) -> int:
        """Raises `TokenizerError` if the tokenizer does not know the token."""
        return self.tokenizer.id_of(self.vision_start_token, "vision_start_token")

    @property
    def vision_end_token(self) -> str:
        """The token behind them."""
        return self._token("vision_end_token")

    @property
    def vision_end_token_id(self) -> int:
        """Raises `TokenizerError` if the tokenizer does not know the token."""
        return self.tokenizer.id_of(self.vision_end_token, "vision_end_token")

    def _token(self, name: str) -> str:
        return self.tokenizer.special_tokens_map.get(name, TOKENS[name])

    def markup(self, use_image_special_tokens: bool | None = None) -> ImageMarkup:
        """The tokens that stand for pictures in this checkpoint's texts. Raises `OptionError`."""
        if use_image_special_tokens or self.use_image_special_tokens:
            raise OptionError("use_image_special_tokens is True; here the chat template writes them, leave it out")
        start, end = self.vision_start_token, self.vision_end_token
        return VideoMarkup((self.image_token, self.video_token), start, end, markers=False)

    def with_videos(self, messages: Sequence[Mapping[str, Any]], policy: SourcePolicy) -> list[dict[str, Any]]:
        """The messages with each video opened. Raises `ImageError`, `PromptError`."""
        return replace_videos(messages, policy, lambda video: [{"type": "video", "video": video}])

    def held(self, video: Video, image_config: Any) -> Video:
        """A video with the frames that the model sees, resized, which needs its source no longer. `image_config`: the
        picture policy. Raises `ImageError`."""
        config = image_config.video
        frames, size, _ = seen(video, config)
        numbers = video.numbers_of(video.indices(*_sampling(config)))
        return held(video.label, frames, video.frame_rate, numbers, size)

    @property
    def frame_sampling(self) -> tuple[float, int, int]:
        """Frames of a second, least and most in all, by the video policy."""
        return _sampling(self.image_processor.config.video)

    def _tokens_of_frames(self, moments: Sequence[float], height: int, width: int) -> int:
        return lfm3_geometry.video_plan(moments, height, width, self.image_processor.config.video).tokens

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The ids of the tokens in whose place pictures and videos stand. Raises `TokenizerError`."""
        return self.image_token_id, self.video_token_id

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the model's configuration states too. Raises `TokenizerError` for a missing token."""
        return super().shared_numbers() | {
            "temporal patch size": self.image_processor.config.temporal_patch_size,
            "video token's id": self.video_token_id,
        }

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json."""
        return Lfm3VlProcessorConfig(self.image_processor.config).to_dict()
