"""LFM3-VL's configuration and processors of transformers, by name; what they can is that of LFM2-VL's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .. import config
from ..errors import PromptError
from ..processing import lfm3_vl
from ..processing.control_tokens import unmarked
from ..processing.conversation import conversations_of
from ..processing.load_image import flatten
from ..processing.prompt import replace_videos
from ..processing.video import Video
from ..processing.video_options import VideoOptions, listed
from .batch_feature import BatchFeature
from .configuration import ConfigMethods
from .processors import ImageProcessorMethods, Lfm2VlProcessor


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


class Lfm3VlVideoProcessor:
    """The video policy of an image processor, by transformers' names. What is set counts for the calls that follow."""

    do_sample_frames: ClassVar[bool] = True
    do_resize: ClassVar[bool] = True
    do_convert_rgb: ClassVar[bool] = True
    num_frames: ClassVar[None] = None
    model_input_names: ClassVar[list[str]] = list(lfm3_vl.VIDEO_INPUTS)

    def __init__(self, image_processor: lfm3_vl.Lfm3VlImageProcessor):
        object.__setattr__(self, "_image_processor", image_processor)

    @property
    def size(self) -> dict[str, int]:
        """The bounds of the area of all sampled frames together, in pixels."""
        return dict(self.to_dict()["size"])

    @property
    def config(self) -> config.Lfm3VlVideoProcessorConfig:
        """The policy."""
        return self._image_processor.config.video  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name in config.Lfm3VlVideoProcessorConfig.__dataclass_fields__:
            return getattr(self.config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises `OptionError` for a bad value."""
        self._image_processor.video = {name: value}

    def to_dict(self) -> dict[str, Any]:
        """video_preprocessor_config.json."""
        return self.config.to_dict()


class Lfm3VlProcessor(Lfm2VlProcessor, lfm3_vl.Lfm3VlProcessor):
    """`processing.Lfm3VlProcessor` with transformers' keywords and tensors. Attributes can be set as those of
    `Lfm2VlProcessor`."""

    image_processor: Any
    image_processor_class: ClassVar[Any] = Lfm3VlImageProcessor
    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer", "video_processor"]

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Lfm3VlVideoProcessor | None = None,
        chat_template: str | None = None,
        *,
        use_image_special_tokens: bool = False,
        notes: tuple[str, ...] = (),
    ):
        """`video_processor`: whose policy the image processor takes; None leaves its own."""
        super().__init__(image_processor, tokenizer, chat_template, use_image_special_tokens, notes)
        if video_processor is not None:
            image_processor.video = video_processor.config

    @property
    def video_processor(self) -> Lfm3VlVideoProcessor:
        """The policy for videos."""
        return Lfm3VlVideoProcessor(self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, *self.video_processor.model_input_names]

    def __call__(  # type: ignore[override]
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **options: Any
    ) -> BatchFeature:
        """Arrays for the model; as `Lfm2VlProcessor.__call__`, and with videos.

        Args:
            images, text, audio: as there.
            videos: one or a list, each as `load_video` reads it; a list of arrays or of lists of frames holds videos.
            options: as there, and, by themselves or in `videos_kwargs`, `fps`, `num_frames`, `do_sample_frames`,
                `video_metadata` of each video ("fps", and "frames_indices" where its frames were sampled before), and
                fields of `Lfm3VlVideoProcessorConfig`.

        Raises:
            PromptError, ImageError, OptionError, TokenizerError: naming what is wrong.
        """
        chosen = VideoOptions.take(options)
        if videos is not None:
            given, policy = listed(videos), self.image_processor.source_policy
            chosen.check_count(len(given))
            made = [chosen.opened(video, number, policy) for number, video in enumerate(given)]
            images = self._in_order([text] if isinstance(text, str) else list(text or ()), images, made)
        return super().__call__(images, text, audio=audio, **options)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Sequence[Any], chat_template: str | None = None, **options: Any
    ) -> Any:
        """As `Lfm2VlProcessor.apply_chat_template`, with videos in the messages and the options of `__call__`."""
        options["processor_kwargs"] = nested = dict(options.get("processor_kwargs") or {})
        chosen = VideoOptions.take(options, nested)
        conversations, batched = conversations_of(conversation)
        if chosen != VideoOptions():
            policy, found = self.image_processor.source_policy, list[Video]()

            def opened(video: Video) -> list[dict[str, Any]]:
                found.append(chosen.opened(video, len(found), policy))
                return [{"type": "video", "video": found[-1]}]

            rates = iter([chosen.rate(number) for number in range(len(chosen.metadata))])
            conversations = [replace_videos(messages, policy, opened, rates) for messages in conversations]
            chosen.check_count(len(found))
        return super().apply_chat_template(conversations if batched else conversations[0], chat_template, **options)

    def _in_order(self, texts: Sequence[str], images: Any, videos: Sequence[Video]) -> list[list[Any]]:
        """Pictures and videos of each text, in the order of their tokens."""
        pictures = [] if images is None else flatten(images)
        rest = {self.image_token: iter(pictures), self.video_token: iter(videos)}
        found = [[next(rest[token], None) for token in unmarked(*rest).findall(text)] for text in texts]
        left = any(next(more, None) is not None for more in rest.values())
        if left or any(each is None for group in found for each in group):
            raise PromptError(
                f"the texts have other numbers of {self.image_token} and {self.video_token} than the {len(pictures)} "
                f"pictures and {len(videos)} videos; each needs one"
            )
        return found
