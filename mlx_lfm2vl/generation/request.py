"""A question as an app asks it, checked, and as arrays, ready to be prefilled.

What people type is text: control tokens in it (`<image>`, `<|im_end|>`) steer nothing, unless `control_tokens` says
that they are meant. In turns of the assistant the tokens that a model writes itself, around tool calls and thoughts, do
count as such, so that it finds its calls in its past.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..constraints.compile import Grammar
from ..errors import ContextLengthError, OptionError, PromptError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.arrays import is_array
from ..processing.control_tokens import ControlTokens, Marked, control_tokens_of, mark
from ..processing.conversation import CALL_END, CALL_START, video_item
from ..processing.processor import Lfm2VlProcessor, check_names
from ..processing.prompt import pictures_of, with_page_items
from ..processing.tokenizer import Tokenizer
from ..processing.video import Video
from .messages import check_tools, checked_message
from .options import GenerationOptions, Model, grammar_of, positions_left, resolved
from .prompt_entry import PictureSpan
from .vision_cache import view_key

OWN_TOKENS = frozenset((CALL_START, CALL_END, "<think>", "</think>"))
MAX_ANSWERS = 256  # to one question
_OF_THE_ANSWER = frozenset(option.name for option in fields(GenerationOptions))
_OF_THE_CALL = (
    "images",
    "videos",
    "system",
    "tools",
    "options",
    "vision_cache",
    "prompt_cache",
    "progress",
    "control_tokens",
)
_WHOLE = {"Sequence", "Split", "ByteLevel", "Digits"}  # steps that keep every character
_longest: weakref.WeakKeyDictionary[Tokenizer, int | None] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class GenerationRequest:
    """One question and how to answer it: what `generate`, `stream_generate` and `generate_batch` take.
    `image_overrides`: fields of `ImageProcessorConfig`, and variables of the chat template."""

    prompt: str | Sequence[Mapping[str, Any]]
    images: Any = None
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    image_overrides: Mapping[str, Any] = field(default_factory=dict)
    control_tokens: bool = False
    videos: Any = None

    def repeat(self, n: int) -> list[GenerationRequest]:
        """The same question n times, for several answers. Answer k has the seed plus k, where there is a seed. Given to
        `generate_batch` or an engine together they share one prefill. Raises `OptionError`."""
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_ANSWERS:
            raise OptionError(f"n is {n!r}, expected an integer from 1 to {MAX_ANSWERS}")
        seed = self.options.seed
        seeds = [None if seed is None else (seed + k) % 2**64 for k in range(n)]
        others = [self.options if each == seed else replace(self.options, seed=each) for each in seeds]
        return [replace(self, options=each) for each in others]


@dataclass(eq=False, repr=False)
class EncodedPicture:
    """A picture of a prompt: the grids of its views, `spatial_shapes` (views, 2), and their patches (views, patches,
    channels*patch*patch) until these are taken. `_encode` makes the patches again, should they be needed again."""

    spatial_shapes: np.ndarray
    _pixels: np.ndarray | None
    _encode: Callable[[], np.ndarray]

    @cached_property
    def keys(self) -> tuple[bytes, ...]:
        """A key for each view."""
        pixels = self._encode() if self._pixels is None else self._pixels
        grids = [(int(height), int(width)) for height, width in self.spatial_shapes]
        return tuple(view_key(view, grid) for view, grid in zip(pixels, grids, strict=True))

    @property
    def key(self) -> bytes:
        """The key by which the picture is known."""
        return b"".join(self.keys)

    @property
    def pixels(self) -> np.ndarray:
        """The patches, which stay."""
        if self._pixels is None:
            self._pixels = self._encode()
        return self._pixels

    def take(self) -> np.ndarray:
        """The patches, which are not kept."""
        pixels, self._pixels = self._pixels, None
        return self._encode() if pixels is None else pixels

    def drop(self) -> None:
        """Lets the patches go."""
        self._pixels = None


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A request as arrays, made without MLX, in any thread: `ids` (n,), resolved options, the pictures, the place
    (start, end) of each in the ids, markers included, and the grammar of the answer's form."""

    ids: np.ndarray
    options: GenerationOptions
    pictures: tuple[EncodedPicture, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    grammar: Grammar | None = None

    @cached_property
    def spans(self) -> tuple[PictureSpan, ...]:
        """The pictures by place and key, for which all their patches are gone through once."""
        pairs = zip(self.places, self.pictures, strict=True)
        return tuple(PictureSpan(*place, picture.key) for place, picture in pairs)


def split_pictures(
    arrays: Mapping[str, Any], counts: Sequence[int], encode: Callable[[int], np.ndarray]
) -> list[EncodedPicture]:
    """The pictures of a call of the image processor. `counts`: the views of each; `encode` makes the patches of the
    n-th again."""
    shapes, pixels, ends = arrays["spatial_shapes"], arrays["pixel_values"], np.cumsum(counts).tolist()
    return [
        EncodedPicture(shapes[end - count : end], pixels[end - count : end], partial(encode, number))
        for number, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]


def take_views(pictures: Sequence[EncodedPicture]) -> tuple[np.ndarray, np.ndarray]:
    """The patches of pictures, which are not kept, padded to one length (views, patches, width), and their grids
    (views, 2)."""
    shapes, pixels = np.concatenate([each.spatial_shapes for each in pictures]), [each.take() for each in pictures]
    if len(pixels) == 1:
        return pixels[0], shapes
    length, end = int(shapes.prod(axis=1).max()), 0
    made = np.zeros((len(shapes), length, pixels[0].shape[2]), pixels[0].dtype)
    for part in pixels:
        made[end : end + len(part), : part.shape[1]] = part[:, :length]
        end += len(part)
    return made, shapes


def check_pair(model: object, processor: object) -> None:
    """Raises `OptionError` unless they are a model and a processor."""
    for name, value, kind in (
        ("model", model, Lfm2VlForConditionalGeneration),
        ("processor", processor, Lfm2VlProcessor),
    ):
        if not isinstance(value, kind):
            raise OptionError(
                f"{name} is {type(value).__name__}, expected {kind.__name__}; `load` returns model and processor"
            )


def check_overrides(processor: Lfm2VlProcessor, names: Iterable[str]) -> None:
    """Raises `OptionError` for a name of `image_overrides` that the processor and its template do not know."""
    for name in _OF_THE_ANSWER.intersection(names):
        raise OptionError(f"{name} is for the answer; give it as options=GenerationOptions({name}=...)")
    for name in names:
        if name == "video":
            raise OptionError("video is not read; give a video in videos=")
        if name in ("fps", "num_frames", "frame_rate"):
            raise OptionError(f"{name} is for a video; give it in videos=load_video(..., {name}=...)")
    known = processor.image_processor.config.options() | processor.template.variables
    check_names(names, known | {"use_image_special_tokens"}, (*_OF_THE_ANSWER, *_OF_THE_CALL))


def encode(model: Model, processor: Lfm2VlProcessor, request: GenerationRequest) -> EncodedPrompt:
    """Reads, resizes and tokenises one request. Raises the library's typed errors."""
    if not isinstance(request, GenerationRequest):
        raise PromptError(f"a request is {type(request).__name__}, expected a GenerationRequest")
    if request.image_overrides:
        check_overrides(processor, request.image_overrides)
    options = resolved(model, request.options)
    grammar = grammar_of(model, processor.tokenizer, options)
    if request.tools is not None:
        check_tools(request.tools)
    policy = processor.image_processor.source_policy
    messages = conversation(request.prompt, request.images, request.system, request.videos)
    (messages,), _ = with_page_items([processor.with_videos(messages, policy)], None, policy)
    if not isinstance(request.control_tokens, bool):
        raise OptionError(f"control_tokens is {request.control_tokens!r}, expected True or False")
    _check_characters(model, processor, messages, request.tools)
    overrides = dict(request.image_overrides)
    variables = {name: overrides.pop(name) for name in processor.template.variables & overrides.keys()}
    text = rendered(processor, messages, request.tools, request.control_tokens, variables=variables)
    (pictures,) = pictures_of([messages], None, policy)
    encoded = processor.encode_text(text, pictures, marked=not request.control_tokens, **overrides)
    positions_left(model, len(encoded.ids), bool(pictures))  # raises if there is no room for an answer
    if not pictures:
        return EncodedPrompt(encoded.ids, options, grammar=grammar)
    counts = [len(plan.spatial_shapes) for plan in encoded.plans]

    def again(number: int) -> np.ndarray:
        return encode(model, processor, request).pictures[number].take()

    own = tuple(split_pictures(encoded.images, counts, again))
    return EncodedPrompt(encoded.ids, options, own, encoded.spans, grammar)


def conversation(
    prompt: str | Sequence[Mapping[str, Any]], images: Any = None, system: str | None = None, videos: Any = None
) -> list[dict[str, Any]]:
    """The messages of one question: the system's text if any, then the user's pictures, videos and text; or those
    given, if they are such. Raises `PromptError` naming what is not."""
    if isinstance(prompt, str):
        if not (system is None or isinstance(system, str)):
            raise PromptError(f"system is {type(system).__name__}, expected text")
        messages: list[dict[str, Any]] = [{"role": "user", "content": user_content(prompt, images, videos)}]
        return [{"role": "system", "content": system}, *messages] if system else messages
    if not isinstance(prompt, (list, tuple)):
        raise PromptError(f"prompt is {type(prompt).__name__}, expected text or a list of messages")
    if images is not None or system is not None or videos is not None:
        raise PromptError("prompt is a conversation; put pictures, videos and the system's text into its messages")
    if not prompt:
        raise PromptError("prompt is a conversation without a message")
    return [checked_message(message, f"prompt[{number}]") for number, message in enumerate(prompt)]


def user_content(text: str, images: Any = None, videos: Any = None) -> list[dict[str, Any]]:
    """A user's turn: pictures first, then videos, then the text. Raises `PromptError` if there is none of them, or None
    for a picture. A list of `videos` holds videos: one that is a list of frames stands in a list. A mapping holds the
    fields of a video's item, such as "path" and "fps"."""
    if not isinstance(text, str):
        raise PromptError(f"the text is {type(text).__name__}, expected str")
    pictures = checked_pictures(images)
    moving = [] if videos is None else video_items(videos)
    if not text and not pictures and not moving:
        raise PromptError("prompt is empty and there is no picture; give one of them")
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    content += moving
    return [*content, {"type": "text", "text": text}] if text else content


def video_items(videos: Any) -> list[dict[str, Any]]:
    """The items of a `videos` argument. Raises `PromptError`."""
    return [
        video_item({"type": "video", **video}, f"videos[{number}]")
        if isinstance(video, Mapping)
        else {"type": "video", "video": video}
        for number, video in enumerate(videos if isinstance(videos, (list, tuple)) else [videos])
    ]


def checked_pictures(images: Any) -> list[Any]:
    """The pictures of an `images` argument. Raises `PromptError` for None among several, for a video, and for an array
    of several pictures."""
    pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    for number, picture in enumerate(pictures):
        if picture is None:
            raise PromptError(f"images[{number}] is None, expected a picture; leave it out")
        if isinstance(picture, Video):
            raise PromptError(
                f"images[{number}] is a video, {picture.label}; videos of generate and Chat go into videos="
            )
        if getattr(picture, "ndim", None) == 4 and is_array(picture):
            shape = tuple(picture.shape)
            raise PromptError(
                f"images[{number}] is an array of the shape {shape}, so several pictures or the frames of a video; "
                "give a list of pictures, or load_video(array) in videos="
            )
    return pictures


def _check_characters(
    model: Model,
    processor: Lfm2VlProcessor,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Refuses texts that cannot fit, however well they tokenise, before much time goes into tokenising them. Raises
    `PromptError`."""
    positions = model.config.text_config.max_position_embeddings
    contents = (message.get("content") for message in messages)
    lists = (content if isinstance(content, (list, tuple)) else [{"text": content}] for content in contents)
    texts = (item.get("text") for items in lists for item in items)
    characters = sum(len(text) for text in texts if isinstance(text, str))
    if characters < positions or (longest := longest_token(processor.tokenizer)) is None:
        return
    if characters < positions * longest:
        return
    # a template may leave texts out
    length = len(processor.template.render(messages, tools=tools, add_generation_prompt=True).text)
    if length >= positions * longest:
        raise ContextLengthError(
            f"the prompt has {length} characters, so at least {-(-length // longest)} tokens, but the model has "
            f"{positions} positions; use a shorter text"
        )


def longest_token(tokenizer: Tokenizer) -> int | None:
    """The most characters of a text that a token can stand for; None where the tokenizer drops or merges characters
    before it looks for tokens. A byte-level token has a letter for each byte, and each character at least one byte."""
    if tokenizer not in _longest:
        backend = tokenizer.backend
        steps = "" if backend.pre_tokenizer is None else backend.pre_tokenizer.__getstate__().decode()
        strips = any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
        whole = set(re.findall(r'"type": *"(\w+)"', steps)) <= _WHOLE and "Removed" not in steps
        bounded = backend.normalizer is None and whole and not strips
        _longest[tokenizer] = max(map(len, tokenizer.get_vocab())) if bounded else None
    return _longest[tokenizer]


def rendered(
    processor: Lfm2VlProcessor,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    control_tokens: bool,
    answer: str = "",
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation up to its answer, and the beginning of the answer that is known. `messages`: in the
    one spelling that `conversation` gives. `variables`: more for the template. Control tokens of the caller's are
    marked as text (unless `control_tokens`), for `Tokenizer.encode_marked`. Raises `TemplateError`."""
    if not control_tokens:
        tokens = processor.control_tokens
        own = [_spoken(each, tokens) if each.get("role") == "assistant" else each for each in messages]
        messages, tools, variables = mark(own, tokens), mark(tools, tokens), mark(variables, tokens)
        answer = answer and _spoken({"content": answer}, tokens)["content"]
    template = processor.template
    return template.render(messages, tools=tools, add_generation_prompt=True, **(variables or {})).text + answer


def _spoken(message: Mapping[str, Any], tokens: ControlTokens) -> dict[str, Any]:
    """The assistant's message, in which its own tokens will be left as they are."""
    made, others = dict(message), control_tokens_of(tokens.tokens - OWN_TOKENS)

    def own(content: Any) -> Any:
        return Marked(mark(content, others)) if isinstance(content, str) else content

    content = made.get("content")
    if isinstance(content, (list, tuple)):
        made["content"] = [
            {**item, "text": own(item["text"])} if isinstance(item, Mapping) and "text" in item else item
            for item in content
        ]
    elif content is not None:
        made["content"] = own(content)
    return made
