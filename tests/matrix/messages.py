"""Pictures in messages as the programs of others write them: read as in ours, or refused, and never passed over."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from containers import NOISE, encoded
from PIL import Image

from mlx_lfm2vl import GenerationOptions, GenerationRequest, SourcePolicy, load
from mlx_lfm2vl.errors import ImageError, Lfm2VlError, PromptError
from mlx_lfm2vl.generation.messages import is_remote
from mlx_lfm2vl.generation.request import encode

from .bench import MODEL, Bench
from .row import Gives, Refused, Row

PNG = encoded(Image.fromarray(NOISE), "PNG")
TEXT = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{TEXT}"
ASK = {"type": "text", "text": "What?"}
RIGHT = [{"role": "user", "content": [{"type": "image", "image": NOISE}, ASK]}]


def prompt(messages: list[Any], **policy: Any) -> tuple[list[int], int]:
    """Ids of a prompt, and a number that its pixels make."""
    model, processor = load(MODEL, source_policy=SourcePolicy(**policy))
    made = encode(model, processor, GenerationRequest(messages, options=GenerationOptions(max_tokens=1)))
    return made.ids.tolist(), hash(tuple(picture.take().tobytes() for picture in made.pictures))


def content(*items: Any) -> list[Any]:
    return [{"role": "user", "content": list(items)}]


def same(name: str, messages: list[Any]) -> Row:
    """Messages that mean what `RIGHT` does."""
    return Row(f"read: {name}", lambda _: prompt(messages) == prompt(RIGHT), Gives(True))


READ = [
    same("Ollama's images", [{"role": "user", "content": "What?", "images": [TEXT]}]),
    same("images that are one", [{"role": "user", "content": "What?", "images": PNG}]),
    same("image beside a text", [{"role": "user", "content": "What?", "image": URI}]),
    same("images beside items", [{"role": "user", "content": [ASK], "images": [NOISE]}]),
    same("OpenAI's image_url", content({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}, ASK)),
    same("image_url that is a text", content({"type": "image_url", "image_url": URI}, ASK)),
    same(
        "OpenAI's Responses",
        content({"type": "input_image", "image_url": URI}, {"type": "input_text", "text": "What?"}),
    ),
    same(
        "Anthropic's base64",
        content({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": TEXT}}, ASK),
    ),
    same("Anthropic's url", content({"type": "image", "source": {"type": "url", "url": URI}}, ASK)),
    same("an image under image_url", content({"type": "image", "image_url": URI}, ASK)),
    same("with keys that are none of pictures", content({"type": "image", "image": NOISE, "cache_control": {}}, ASK)),
    same("with a file's name beside the picture", [{**RIGHT[0], "file_name": "a.png", "name": "b.png", "id": "c.png"}]),
    same("with words about pictures", [{**RIGHT[0], "note": "see a.png", "steps": [1, 2.5, None], "when": {"at": 3}}]),
    same("with empty keys of pictures", [{**RIGHT[0], "images": None, "attachments": []}]),
]


def refused(name: str, messages: list[Any], what: str, way: str, error: type[Lfm2VlError] = PromptError) -> Row:
    return Row(f"refused: {name}", lambda _: prompt(messages), Refused(error, "", what, way))


REFUSED = [
    *(
        refused(
            f"another picture as {key} of a message",
            [{**RIGHT[0], key: value}],
            f"prompt[0] has {key!r}, which is not read",
            "put pictures into 'images' or into its content",
        )
        for key, value in (("src", "https://example.org/b.png"), ("mask", "a_mask.png"), ("frame", NOISE))
    ),
    *(
        refused(
            f"{key} of a message",
            [{"role": "user", "content": "What?", key: [URI]}],
            f"prompt[0] has {key!r}, which is not read",
            "put pictures into 'images' or into its content",
        )
        for key in ("attachments", "image_url", "Images", "imgs", "imges", "photos", "input_image")
    ),
    *(
        refused(
            f"{name} of a message",
            [{"role": "user", "content": "What?", key: value}],
            f"prompt[0] has {key!r}, which is not read",
            "put pictures into 'images' or into its content",
        )
        for name, key, value in (
            ("files", "files", ["my scan.png"]),
            ("media with an address", "media", {"kind": "photo", "at": "https://example.org/a.JPG"}),
            ("an address", "src", "https://example.org/7"),
            ("bytes", "data", PNG),
            ("an array", "frame", NOISE),
            ("base64 in a list", "content_parts", [{"blob": TEXT}]),
            ("a data URI", "url", URI),
            ("a path", "where", Path("scan.tif")),
            ("a document", "documents", ["a.pdf"]),
            ("a video", "video", "a.mkv"),
            *((f"a file {end}", "clip", f"a{end}") for end in (".avi", ".mkv", ".m4v", ".mpg", ".wmv")),
        )
    ),
    refused(
        "a file item of OpenAI's",
        content(ASK, {"type": "file", "file": {"filename": "a.png", "file_data": URI}}),
        "item 1 of its content, is of type 'file' and has 'file', which is not read",
        "it needs an item of type 'image' or 'video'",
    ),
    refused(
        "a video item without a video",
        content(ASK, {"type": "video", "film": "clip.mp4"}),
        "item 1 of its content, is of type 'video' and has 'film', which is not read",
        "put videos under 'video'",
    ),
    refused(
        "a picture in a video item",
        content(ASK, {"type": "video", "video": "clip.mp4", "fps": 1, "num_frames": 3, "image": "z.png"}),
        "item 1 of its content, is of type 'video' and has 'image', which is not read",
        "put videos under 'video'",
    ),
    refused(
        "an image item with another source",
        content({"type": "image", "file": "a.png"}, ASK),
        "item 0 of its content, is of type 'image' and has 'file', which is not read",
        "call it 'image'",
    ),
    *(
        refused(
            f"{key} of a text",
            content({**ASK, key: {"url": URI}}),
            f"item 0 of its content, is of type 'text' and has {key!r}, which is not read",
            "it needs an item of type 'image' or 'video'",
        )
        for key in ("image_url", "image", "picture")
    ),
    refused(
        "a misspelt source",
        content({"type": "image", "imgae": URI}, ASK),
        "item 0 of its content, is of type 'image' and has 'imgae', which is not read",
        "call it 'image'",
    ),
    refused(
        "a file of OpenAI's", content({"type": "input_image", "file_id": "file-7"}, ASK), "has 'file_id'", "itself"
    ),
    refused(
        "a file of Anthropic's",
        content({"type": "image", "source": {"type": "file", "file_id": "f"}}, ASK),
        "has 'source' without 'url' or 'data'",
        "give the picture itself",
    ),
    refused(
        "a picture that is none",
        [{"role": "user", "content": "What?", "images": ["no.png"]}],
        "no.png",
        "no such",
        ImageError,
    ),
]

WAYS: dict[str, Callable[[str], list[Any]]] = {
    "images": lambda picture: [{"role": "user", "content": "What?", "images": [picture]}],
    "image_url": lambda picture: content({"type": "image", "image_url": picture}),
    "input_image": lambda picture: content({"type": "input_image", "image_url": picture}),
    "source": lambda picture: content({"type": "image", "source": {"type": "url", "url": picture}}),
}


def closed(way: str, picture: str) -> Callable[[Bench], Any]:
    return lambda _: prompt(WAYS[way](picture), allow_urls=False, allow_paths=False)


POLICIES = [
    *(
        Row(
            f"policy: a path as {way}",
            closed(way, "/etc/passwd"),
            Refused(ImageError, "/etc/passwd", "local paths are not allowed here", "give the picture itself"),
        )
        for way in WAYS
    ),
    *(
        Row(
            f"policy: a URL as {way}",
            closed(way, "http://127.0.0.1:9/a.png"),
            Refused(ImageError, "http://127.0.0.1:9/a.png", "URLs are not allowed here", "give the picture itself"),
        )
        for way in WAYS
    ),
    Row(
        "an address may be slow wherever it stands",
        lambda _: [is_remote(WAYS[way]("https://example.com/a.png"), None) for way in WAYS],
        Gives([True] * len(WAYS)),
    ),
    Row("a picture itself is not slow", lambda _: is_remote(RIGHT, [np.zeros((2, 2))]), Gives(False)),
]

ROWS = [*READ, *REFUSED, *POLICIES]
