"""Processors with transformers' keywords and tensors of every kind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ..errors import OptionError
from ..processing import image_processor, processor, text_only
from ..processing.conversation import conversations_of
from ..processing.image_processor import ImageProcessor
from ..processing.processor import TEXT_OPTIONS, check_names
from ..processing.prompt import pictures_of
from . import tensors
from .batch_feature import BatchFeature
from .call_options import normalised, without_rgb
from .loading import hub_options, not_of_models
from .sharing import SharedFile
from .tokenizer import Tokenizer

_TEMPLATE_OPTIONS = {  # keywords of `apply_chat_template` that are not for `__call__`
    *("tools", "documents", "add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
    *("tokenize", "return_dict", "sanitize_control_tokens"),
}


class ImageProcessorMethods(SharedFile, ImageProcessor):
    """transformers' keywords and tensors, for an image processor of `processing`."""

    do_resize: ClassVar[bool] = True
    do_convert_rgb: ClassVar[bool] = True

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path_or_repo: str | os.PathLike[str], **options: Any
    ) -> Self:
        """From a folder, a hub repository or "demo". `options` as those of `AutoProcessor.from_pretrained`, or fields
        of `ImageProcessorConfig`. Raises `HubError`, `ConfigError`, `OptionError`."""
        place, hub, fields = hub_options(path_or_repo, not_of_models(options))
        return super().from_pretrained(place, hub, **cls.known(normalised(fields)))

    def __call__(self, images: Any, *, return_tensors: str | None = "np", **overrides: Any) -> BatchFeature:
        """As that of `processing`, with `return_tensors` "np", "mlx", "pt" or None (NumPy arrays), and with
        transformers' keywords. Raises `ImageError`, `OptionError`."""
        kind = tensors.check_return_tensors(return_tensors)
        made = super().__call__(images, **self.known(normalised(without_rgb(overrides, lambda: images))))
        return BatchFeature.of(made, kind)

    preprocess = __call__

    @classmethod
    def known(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The keywords without those that have no effect in the family."""
        return {name: value for name, value in options.items() if name != "size" or name in cls.config_class.options()}

    def to_dict(self) -> dict[str, Any]:
        """preprocessor_config.json."""
        return dict(self.files_class(image=self.config).to_dict()["image_processor"])


class Lfm2VlImageProcessor(ImageProcessorMethods, image_processor.Lfm2VlImageProcessor):
    """`processing.Lfm2VlImageProcessor` with transformers' keywords and tensors."""

    @property
    def size(self) -> dict[str, int]:
        """As transformers has it, where it has no effect either; `tile_size` is what counts."""
        return {"height": self.tile_size, "width": self.tile_size}


Lfm2VlImageProcessorFast = Lfm2VlImageProcessor


class Lfm2VlProcessor(SharedFile, processor.Lfm2VlProcessor):
    """`processing.Lfm2VlProcessor` with transformers' keywords and tensors.

    `image_processor`, `tokenizer`, `chat_template` and `use_image_special_tokens` can be set, as can the attributes of
    the first two. Calls that follow obey.
    """

    image_processor: Lfm2VlImageProcessor
    tokenizer: Tokenizer
    image_processor_class = Lfm2VlImageProcessor
    tokenizer_class = Tokenizer
    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path_or_repo: str | os.PathLike[str], **options: Any
    ) -> Self:
        """From a folder, a hub repository or "demo".

        Args:
            path_or_repo: the model's name.
            options: `revision`, `token`, `cache_dir`, `local_files_only` for the hub; `subfolder`; `chat_template`, in
                place of the checkpoint's; `padding_side`; `source_policy`; `use_image_special_tokens`; fields of
                `ImageProcessorConfig`. What has no meaning here (`trust_remote_code` ...) is ignored with a warning.

        Raises:
            HubError, ConfigError, TokenizerError, OptionError: a template is read when it is first needed.
        """
        place, hub, others = hub_options(path_or_repo, not_of_models(options))
        template, side = others.pop("chat_template", None), others.pop("padding_side", None)
        made = super().from_pretrained(place, hub, **cls.image_processor_class.known(normalised(others)))
        if template is not None:
            made.chat_template = template
        if side is not None:
            made.tokenizer.padding_side = side
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in (
            *("image_processor", "tokenizer", "use_image_special_tokens", "notes", "chat_template", "template"),
        ):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
        object.__setattr__(self, name, value)

    def __call__(  # type: ignore[override]
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **options: Any
    ) -> BatchFeature:
        """Arrays for the model; see `processing.Lfm2VlProcessor.__call__`.

        Args:
            images: as there, and tensors of torch and MLX.
            text: as there.
            videos: None; these models take none.
            audio: None.
            options: as there, in every spelling of transformers (`images_kwargs`, `text_kwargs`, `common_kwargs`);
                `return_tensors` "np", "mlx", "pt" or None; `return_mm_token_type_ids`.

        Raises:
            PromptError, ImageError, OptionError, TokenizerError: naming what is wrong.
        """
        options = without_rgb(options, lambda: images)
        options, kind, types = self._prepared({**options, "videos": videos, "audio": audio})
        made = super().__call__(images, text, return_tensors=None, **options)
        return self._finished(made, kind, types)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Sequence[Any], chat_template: str | None = None, **options: Any
    ) -> Any:
        """As `processing.Lfm2VlProcessor.apply_chat_template`, with the keywords of `__call__`."""
        nested = dict(options.pop("processor_kwargs", None) or {})
        pictures = options.pop("images", None)
        own = _TEMPLATE_OPTIONS | (self.template if chat_template is None else self._compiled(chat_template)).variables
        extra = {name: options.pop(name) for name in [*options] if name not in own}
        for name in nested:
            if name in extra:
                raise OptionError(f"{name} is given twice: by itself and in processor_kwargs")
        policy = self.image_processor.source_policy
        beside = [] if pictures is None else pictures
        chosen = without_rgb(
            {**extra, **nested}, lambda: [pictures_of(conversations_of(conversation)[0], None, policy), beside]
        )
        kwargs, kind, types = self._prepared(chosen)
        fixed = {name: options.pop(name, False) for name in ("tokenize", "return_dict")}
        made = super().apply_chat_template(
            conversation,
            chat_template,
            **options,
            **fixed,
            images=kwargs.pop("images", pictures),
            return_tensors=None,
            processor_kwargs=kwargs,
        )
        if not fixed["tokenize"]:
            return made
        if isinstance(made, processor.ProcessorOutput):
            return self._finished(made, kind, types)
        return BatchFeature.of({"input_ids": made}, kind)["input_ids"]

    def _prepared(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], str | None, bool]:
        """The options for `processing`; which tensors are wanted; whether token types are."""
        chosen = self.image_processor.known(normalised(options))
        kind = tensors.check_return_tensors(chosen.pop("return_tensors", "np"))
        types = bool(chosen.pop("return_mm_token_type_ids", False))
        chosen.pop("return_row_col_info", None)
        check_names(chosen, TEXT_OPTIONS | self.image_processor.config.options() | {"images"})
        return chosen, kind, types

    def _finished(self, made: processor.ProcessorOutput, kind: str | None, types: bool) -> BatchFeature:
        if types:
            kinds = {id: kind for kind, id in enumerate(self.placeholder_ids, 1)}
            made["mm_token_type_ids"] = [[kinds.get(int(id), 0) for id in row] for row in made["input_ids"]]
        return BatchFeature.of(made, kind)

    def save_pretrained(
        self, folder: str | os.PathLike[str], push_to_hub: bool = False, repo_id: str | None = None, **options: Any
    ) -> None:
        """Writes processor_config.json, the tokenizer's files and chat_template.jinja; with `push_to_hub` also into
        the repository `repo_id`. Raises `OutputError`, `HubError`."""
        super().save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(repo_id or os.path.basename(os.path.normpath(folder)), **options)

    def post_process_multimodal_output(
        self, generated_outputs: Any, skip_special_tokens: bool = True, generation_mode: str | None = None, **o: Any
    ) -> list[str]:
        """The answers as text. Raises `OptionError` for a mode that is not "text"."""
        if generation_mode not in (None, "text"):
            raise OptionError(f"generation_mode is {generation_mode!r}; these models write 'text' only")
        return self.post_process_image_text_to_text(generated_outputs, skip_special_tokens, **o)


class TextOnlyImageProcessor(ImageProcessorMethods, text_only.TextOnlyImageProcessor):  # type: ignore[misc]
    """That of a text model: refuses pictures."""


class TextProcessor(Lfm2VlProcessor, text_only.TextProcessor):  # type: ignore[misc]
    """Tokenizer and chat template of a text model."""

    image_processor_class: ClassVar[Any] = TextOnlyImageProcessor
