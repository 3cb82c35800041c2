"""`Lfm2VlProcessor`: the calls of the reference's processor. Several texts or conversations in, padded arrays out.

Named after and behaving like the reference's class, with NumPy arrays by default. Deliberate differences: an unknown
keyword is an error, a flat list of pictures is dealt out over several texts by their placeholders, and what geometry.py
and image_processor.py name.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from ..config import ProcessorConfig
from ..config.files import writing
from ..errors import OptionError, PromptError, did_you_mean
from ..hub import resolve
from .batch_feature import BatchFeature, TextOptions, check_return_tensors
from .control_tokens import mark
from .conversation import conversations_of
from .image_processor import ImageProcessor, Lfm2VlImageProcessor
from .load_image import DEFAULT_POLICY, SourcePolicy, with_pages
from .prompt import Expanded, PromptEncoder, image_spans, pictures_of, with_page_items
from .tokenizer import Tokenizer
from .view_plan import ViewPlan

TEXT_OPTIONS = frozenset(TextOptions.__dataclass_fields__) - {"return_tensors"}


def check_names(names: Iterable[str], known: Collection[str], others: Collection[str] = ()) -> None:
    """Raises `OptionError` for a keyword that is none of `known`, with the one of these or of `others` that may be
    meant."""
    for name in names:
        if name not in known:
            meant = did_you_mean([name], (*known, *others))
            text = f"{name!r} is neither a variable of the chat template nor an option of the processor"
            raise OptionError(text + meant)


def assistant_mask(offsets: Sequence[tuple[int, int]], text: Expanded, spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for every token that overlaps one of the spans, which count characters of the text before its expansion."""
    mask = np.zeros(len(offsets), dtype=np.int64)
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    for start, end in spans:
        mask |= (starts < text.position(end)) & (ends > text.position(start))
    return [int(flag) for flag in mask]


class ProcessorOutput(BatchFeature):
    """The inputs of a model by name, and beside it (as attributes, not entries) where the pictures are.

    `plans`: for each text the `ViewPlan` of each of its pictures; `image_spans`: for each text the (start, end) of each
    picture in its row of `input_ids`, markers included.
    """

    plans: tuple[tuple[ViewPlan, ...], ...] = ()
    image_spans: tuple[tuple[tuple[int, int], ...], ...] = ()


class Lfm2VlProcessor(PromptEncoder):
    """A checkpoint's `PromptEncoder` that is loaded and saved, and called as the reference's processor is."""

    image_processor_class: ClassVar[type[ImageProcessor]] = Lfm2VlImageProcessor
    tokenizer_class: ClassVar[type[Tokenizer]] = Tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        hub: Mapping[str, Any] | None = None,
        /,
        *,
        use_image_special_tokens: bool | None = None,
        source_policy: SourcePolicy = DEFAULT_POLICY,
        **image_overrides: Any,
    ) -> Self:
        """From a folder, a hub repository or "demo". `hub` has keywords of `resolve`; `image_overrides` replace fields
        of `ImageProcessorConfig`.

        Raises `HubError`, `ConfigError`, `TokenizerError`, `OptionError`; a template is read when it is first needed.
        """
        patterns = ("*.json", "*.jinja", "*.txt")
        folder = resolve(path_or_repo, patterns=patterns, enough=("tokenizer.json",), **(hub or {}))
        config = cls.image_processor_class.files_class.from_folder(folder)
        special = config.use_image_special_tokens if use_image_special_tokens is None else use_image_special_tokens
        image_processor = cls.image_processor_class(config.image, source_policy=source_policy, **image_overrides)
        tokenizer = cls.tokenizer_class.from_folder(folder)
        return cls(image_processor, tokenizer, use_image_special_tokens=special, notes=config.notes)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes processor_config.json, the tokenizer's files and chat_template.jinja into `folder`. Raises
        `OutputError`."""
        with writing(folder) as target:
            text = json.dumps(self.to_dict(), indent=2) + "\n"
            (target / "processor_config.json").write_text(text, encoding="utf-8")
            self.tokenizer.save_pretrained(target)
            if self.chat_template is not None:
                (target / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
                (target / "chat_template.json").unlink(missing_ok=True)  # which would go before it

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json."""
        return ProcessorConfig(self.image_processor.config, self.use_image_special_tokens).to_dict()

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the model's configuration states too. Raises `TokenizerError` for a missing token."""
        pictures = self.image_processor.config
        return {
            "patch size": pictures.encoder_patch_size,
            "downsample factor": pictures.downsample_factor,
            "image token's id": self.image_token_id,
        }

    @property
    def image_start_token(self) -> str:
        return str(self.tokenizer.image_start_token)

    @property
    def image_end_token(self) -> str:
        return str(self.tokenizer.image_end_token)

    @property
    def image_thumbnail_token(self) -> str:
        return str(self.tokenizer.image_thumbnail_token)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask"]

    # Text and pictures to arrays

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **options: Any) -> ProcessorOutput:
        """Arrays for the model from texts with one `<image>` a picture.

        Args:
            images: None, one picture, a flat list, or a list a text.
            text: a string or a list of them.
            options: those of `TextOptions`, and fields of `ImageProcessorConfig`. Generation needs the padding side
                "left"; the default is the tokenizer's. Special tokens are not added, as chat templates write them.

        Returns:
            "input_ids" and "attention_mask" (texts, length) int64. If there are pictures, also "pixel_values",
            "pixel_attention_mask" and "spatial_shapes" of all of them in order (see `Lfm2VlImageProcessor`).

        Raises:
            PromptError, ImageError, OptionError, TokenizerError: naming what is wrong.
        """
        chosen = {name: options.pop(name) for name in TextOptions.__dataclass_fields__ if name in options}
        pages = None if images is None else with_pages(images, self.image_processor.source_policy)
        return self._encode(pages, text, TextOptions(**chosen), options)

    def _encode(
        self,
        images: Any,
        text: str | Sequence[str] | None,
        options: TextOptions,
        image_overrides: Mapping[str, Any],
        generation_spans: Sequence[Sequence[tuple[int, int]]] | None = None,
        marked: bool = False,
    ) -> ProcessorOutput:
        """`__call__`; with `generation_spans` (characters of each text) also "assistant_masks"; with `marked`, texts in
        which control tokens may be marked as plain text."""
        if text is None:
            raise PromptError("text is needed; the least is one image token a picture")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(sample, str) for sample in texts):
            raise PromptError("text must be a string or a list of strings, with at least one")
        markup = self.markup(options.use_image_special_tokens)
        patches, plans, expanded, known = self._expand(texts, images, markup, image_overrides)
        masks: list[list[int]] = []
        if marked:
            rows = [self.tokenizer.encode_marked(sample.text) for sample in expanded]
        else:
            encodings = self.tokenizer.encode_batch([sample.text for sample in expanded], options.add_special_tokens)
            rows = [list(encoding.ids) for encoding in encodings]
            for encoding, sample, spans in zip(encodings, expanded, generation_spans or (), strict=False):
                masks.append(assistant_mask(encoding.offsets, sample, spans))
        output = ProcessorOutput(self.tokenizer.batch(rows, options, masks))
        output.plans = tuple(plans)
        output.image_spans = tuple(
            image_spans(row, plan, known, markup.markers) for row, plan in zip(output["input_ids"], plans, strict=True)
        )
        output.update(self.image_processor.model_inputs(patches, [plan for sample in plans for plan in sample]))
        return output

    # Conversations

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "np",
        return_dict: bool = False,
        images: Any = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        sanitize_control_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A conversation (or a list of them) as text, as ids, or as everything the model takes.

        Args:
            conversation: messages {"role", "content"}. A content is a string or a list of {"type": "text", "text"} and
                {"type": "image"} items. A picture stands in its item under "image", "url", "path" or "base64", or as
                OpenAI's {"type": "image_url", "image_url": {"url"}}.
            chat_template: a template in place of the checkpoint's, or the name of one of those.
            tools, documents, add_generation_prompt, continue_final_message: as for `ChatTemplate.render`.
            return_assistant_tokens_mask: adds "assistant_masks", 1 where the template marks the assistant's words.
            tokenize: whether to make ids of the text.
            return_tensors: as for `__call__`.
            return_dict: whether to return all that `__call__` returns, not the ids alone.
            images: the pictures of items that hold none, in their order.
            processor_kwargs: more keywords of `__call__`.
            sanitize_control_tokens: makes control tokens in the caller's strings plain text: `<image>` is no
                placeholder, `<|im_end|>` ends no turn. It needs `tokenize`.
            kwargs: variables of the template if it has such, else keywords of `__call__`.

        Returns:
            The text; with `tokenize` "input_ids", or with `return_dict` all of it.

        Raises:
            TemplateError: the template is missing, damaged, or refuses the conversation.
            PromptError, ImageError, OptionError, TokenizerError: as `__call__`.
        """
        check_return_tensors(return_tensors)
        template = self.template if chat_template is None else self._compiled(chat_template)
        options = {name: value for name, value in kwargs.items() if name not in template.variables}
        options.update(processor_kwargs or {})
        images = options.pop("images", images)
        check_names(options, TEXT_OPTIONS | self.image_processor.config.options() | template.variables)
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise OptionError("return_assistant_tokens_mask needs tokenize=True and return_dict=True")
        if return_assistant_tokens_mask and continue_final_message:
            raise OptionError("return_assistant_tokens_mask and continue_final_message exclude each other")
        conversations, batched = conversations_of(conversation)
        variables = {name: value for name, value in kwargs.items() if name in template.variables}
        policy = self.image_processor.source_policy
        if tokenize or self.frames_as_pictures:
            conversations = [self.with_videos(messages, policy) for messages in conversations]
        if tokenize:
            conversations, images = with_page_items(conversations, images, policy)
        pictures = pictures_of(conversations, images, policy) if tokenize else None
        if sanitize_control_tokens:
            if not tokenize or return_assistant_tokens_mask:
                raise OptionError("sanitize_control_tokens needs tokenize=True, without return_assistant_tokens_mask")
            tokens = self.tokenizer.control_tokens(template.literal_text)
            conversations, tools, documents, variables = (
                mark(value, tokens) for value in (conversations, tools, documents, variables)
            )
        rendered = [
            template.render(
                messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
            for messages in conversations
        ]
        texts = [one.text for one in rendered]
        if not tokenize:
            return texts if batched else texts[0]
        if return_assistant_tokens_mask and not template.marks_generation:
            warnings.warn(f"{template.where}: has no {{% generation %}} block; assistant_masks are all 0", stacklevel=2)
        text_options = {name: options.pop(name) for name in TEXT_OPTIONS & options.keys()}
        output = self._encode(
            pictures,
            texts,
            TextOptions(**text_options, return_tensors=return_tensors),
            options,
            [one.generation_spans for one in rendered] if return_assistant_tokens_mask else None,
            sanitize_control_tokens,
        )
        return output if return_dict else output["input_ids"]

    # Ids to text

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """`Tokenizer.decode`."""
        return self.tokenizer.decode(token_ids, skip_special_tokens, **options)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """`Tokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The answers as text."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens, **options)
