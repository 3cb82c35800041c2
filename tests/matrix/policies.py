"""An app that passes on what strangers send: with URLs and paths forbidden, no way into the library reads them."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from typing import Any

from conftest import Loaded
from containers import NOISE, encoded
from PIL import Image

from mlx_lfm2vl import Chat, Engine, GenerationOptions, GenerationRequest, SourcePolicy, generate, generate_batch, load
from mlx_lfm2vl.errors import ImageError

from .bench import MODEL, Bench
from .row import Gives, Refused, Row, without_bench

PNG = encoded(Image.fromarray(NOISE), "PNG")
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
CLOSED = SourcePolicy(allow_urls=False, allow_paths=False, max_pixels=1000)
ONE = GenerationOptions(max_tokens=1)


@functools.cache
def loaded() -> Loaded:
    return load(MODEL, source_policy=CLOSED)


def asked_by_generate(picture: Any) -> Any:
    return generate(*loaded(), "What?", picture, options=ONE)


def asked_by_message(picture: Any) -> Any:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    return generate(*loaded(), [{"role": "user", "content": content}], options=ONE)


def asked_as_openai_does(picture: Any) -> Any:
    content = [{"type": "image_url", "image_url": {"url": picture}}]
    return generate(*loaded(), [{"role": "user", "content": content}], options=ONE)


def asked_by_path_item(picture: Any) -> Any:
    return generate(*loaded(), [{"role": "user", "content": [{"type": "image", "path": picture}]}], options=ONE)


def asked_by_chat(picture: Any) -> Any:
    return Chat(*loaded(), options=ONE).ask("What?", picture)


def asked_by_batch(picture: Any) -> Any:
    (answer,) = generate_batch(*loaded(), [GenerationRequest("What?", [picture], options=ONE)])
    if answer.error is not None:
        raise answer.error
    return answer.text


def asked_by_engine(picture: Any) -> Any:
    with Engine(lambda: load(MODEL, source_policy=CLOSED)) as engine:
        return "".join(piece.text for piece in engine.submit("What?", picture, options=ONE))


def asked_by_processor(picture: Any) -> Any:
    loaded()[1](images=[picture], text="<image>What?")
    return ""


WAYS: tuple[Callable[[Any], Any], ...] = (
    *(asked_by_generate, asked_by_message, asked_as_openai_does, asked_by_path_item),
    *(asked_by_chat, asked_by_batch, asked_by_engine, asked_by_processor),
)


def path_of(ask: Callable[[Any], Any]) -> Callable[[Bench], Any]:
    return lambda bench: ask(str(bench.write("a.png", PNG)))


def given(ask: Callable[[Any], Any]) -> Callable[[Bench], Any]:
    return lambda _: isinstance(ask(URI), str)


ROWS = [
    *(
        Row(
            f"a path, {ask.__name__.replace('_', ' ')}",
            path_of(ask),
            Refused(ImageError, "{folder}/a.png", "local paths are not allowed here", "give the picture itself"),
        )
        for ask in WAYS
    ),
    *(
        Row(
            f"a URL, {ask.__name__.replace('_', ' ')}",
            without_bench(ask, "http://127.0.0.1:9/a.png"),
            Refused(ImageError, "http://127.0.0.1:9/a.png", "URLs are not allowed here", "give the picture itself"),
        )
        for ask in WAYS
    ),
    *(
        Row(f"the picture itself, {ask.__name__.replace('_', ' ')}", given(ask), Gives(True))
        for ask in WAYS
        if ask is not asked_by_path_item
    ),
    *(
        Row(
            f"too many pixels, {ask.__name__.replace('_', ' ')}",
            without_bench(ask, Image.new("RGB", (40, 40))),
            Refused(ImageError, "PIL image RGB", "40x40 is more than 1,000 pixels", "make it smaller"),
        )
        for ask in (asked_by_generate, asked_by_message, asked_by_chat, asked_by_batch, asked_by_engine)
    ),
]
