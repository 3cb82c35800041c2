"""LFM3-VL's configuration and processors of transformers, by name; what they can is that of LFM2-VL's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from .. import config
from ..errors import OptionError, PromptError
from ..processing import lfm3_vl
from ..processing.control_tokens import unmarked
from ..processing.conversation import conversations_of
from ..processing.load_image import Picture, flatten
from ..processing.processor import check_names
from ..processing.prompt import replace_videos
from ..processing.video import Video, load_video
from .batch_feature import BatchFeature
from .configuration import ConfigMethods
from .processors import ImageProcessorMethods, Lfm2VlProcessor

VIDEO_OPTIONS = ("fps", "num_frames", "do_sample_frames", "video_metadata")


class Lfm3VlConfig(ConfigMethods, config.Lfm3VlConfig):  # type: ignore[misc]
    """LFM3-VL's config.json, as transformers has it; see `mlx_lfm2vl.config.Lfm3VlConfig`."""

    base = config.Lfm3VlConfig


class Lfm3VlImageProcessor(ImageProcessorMethods, lfm3_vl.Lfm3VlImageProcessor):
    """`processing.Lfm3VlImageProcessor` with transformers' keywords and tensors."""

    @property
    def size(self) -> dict[str, int]:
        """The bounds of a resized picture's area in pixels."""
        return {"shortest_edge": self.config.min_pixels, "longest_edge": self.config.max_pixels}

    @property
    def image_processor_type(self) -> str:
        """The reference's name of the class."""
        return "Qwen2VLImageProcessor"


class Lfm3VlProcessor(Lfm2VlProcessor, lfm3_vl.Lfm3VlProcessor):
    """`processing.Lfm3VlProcessor` with transformers' keywords and tensors. Attributes can be set as those of
    `Lfm2VlProcessor`."""

    image_processor: Any
    image_processor_class: ClassVar[Any] = Lfm3VlImageProcessor

    def __call__(  # type: ignore[override]
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **options: Any
    ) -> BatchFeature:
        """Arrays for the model; as `Lfm2VlProcessor.__call__`, and with videos.

        Args:
            images, text, audio: as there.
            videos: one or a list, each as `load_video` reads it; a list of arrays or of lists of frames holds videos.
            options: as there, and `videos_kwargs`: `fps`, `num_frames`, `do_sample_frames`, and `video_metadata` of
                each video ("fps", and "frames_indices" where its frames were sampled before).

        Raises:
            PromptError, ImageError, OptionError, TokenizerError: naming what is wrong.
        """
        chosen = _take_video_options(options)
        if videos is not None:
            given = _listed(videos)
            metadata = _listed(chosen.pop("video_metadata", None) or [None] * len(given))
            if len(metadata) != len(given):
                raise OptionError(f"video_metadata has {len(metadata)} entries for {len(given)} videos")
            made = [self._video(video, said, **chosen) for video, said in zip(given, metadata, strict=True)]
            images = self._in_order([text] if isinstance(text, str) else list(text or ()), images, made)
        return super().__call__(images, text, audio=audio, **options)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Sequence[Any], chat_template: str | None = None, **options: Any
    ) -> Any:
        """As `Lfm2VlProcessor.apply_chat_template`, with videos in the messages and the options of `__call__`."""
        nested = dict(options.get("processor_kwargs") or {})
        chosen = _take_video_options(options) | _take_video_options(nested)
        options["processor_kwargs"] = nested
        conversations, batched = conversations_of(conversation)
        if chosen:
            policy = self.image_processor.source_policy
            metadata = _listed(chosen.pop("video_metadata", None) or ())
            said, found = iter(metadata), list[Video]()

            def opened(video: Video) -> list[dict[str, Any]]:
                found.append(self._video(video, next(said, None), **chosen))
                return [{"type": "video", "video": found[-1]}]

            rates = iter([_known(each).get("fps") for each in metadata])
            conversations = [replace_videos(messages, policy, opened, rates) for messages in conversations]
            if metadata and len(metadata) != len(found):
                raise OptionError(f"video_metadata has {len(metadata)} entries for {len(found)} videos")
        return super().apply_chat_template(conversations if batched else conversations[0], chat_template, **options)

    def _video(self, video: Any, said: Any = None, do_sample_frames: bool | None = None, **sampling: Any) -> Video:
        """A video with what its metadata says of it."""
        known = _known(said)
        sampling = {name: value for name, value in sampling.items() if value is not None}
        policy = self.image_processor.source_policy
        made = load_video(video, frame_rate=known.get("fps"), policy=policy, **sampling)
        if do_sample_frames is not False:
            return made
        numbers = known.get("frames_indices")
        if numbers is not None and len(numbers) != made.count:
            raise OptionError(f"frames_indices has {len(numbers)} numbers for {made.count} frames")
        return replace(made, fps=None, num_frames=made.count, numbers=None if numbers is None else tuple(numbers))

    def _in_order(self, texts: Sequence[str], images: Any, videos: Sequence[Video]) -> list[list[Any]]:
        """Pictures and videos of each text, in the order of their tokens."""
        rest = {self.image_token: iter([] if images is None else flatten(images)), self.video_token: iter(videos)}
        found = [[next(rest[token], None) for token in unmarked(*rest).findall(text)] for text in texts]
        if any(each is None for group in found for each in group) or any(
            next(more, None) is not None for more in rest.values()
        ):
            count = 0 if images is None else len(flatten(images))
            raise PromptError(
                f"the texts have other numbers of {self.image_token} and {self.video_token} than the {count} pictures "
                f"and {len(videos)} videos; each needs one"
            )
        return found


def _take_video_options(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of videos from those of a call. Raises `OptionError`."""
    nested = options.pop("videos_kwargs", None) or {}
    if not isinstance(nested, Mapping):
        raise OptionError(f"videos_kwargs is {type(nested).__name__}, expected a mapping of options")
    check_names(nested, VIDEO_OPTIONS)
    given = {**options, **nested}
    for name in VIDEO_OPTIONS:
        options.pop(name, None)
    return {name: given[name] for name in VIDEO_OPTIONS if given.get(name) is not None}


def _known(said: Any) -> dict[str, Any]:
    """The entries of a video's metadata that say something. Raises `OptionError`."""
    if not isinstance(said, Mapping | None):
        raise OptionError(f"video_metadata holds {type(said).__name__}, expected a mapping with 'fps' for each video")
    return {name: value for name, value in (said or {}).items() if value is not None}


def _listed(videos: Any) -> list[Any]:
    """The videos of a list of them, or one that is no list; a list of pictures is one video."""
    if not isinstance(videos, (list, tuple)):
        return [videos]
    frames = all(isinstance(each, Picture) or getattr(each, "ndim", 4) == 3 for each in videos)
    return [videos] if videos and frames else list(videos)
