"""Pictures and videos of a body: data URIs and base64 to bytes, http(s) addresses if they are allowed, never a path."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import ImageError
from ..processing.fetch import SourcePolicy
from ..processing.not_pictures import VIDEO_SUFFIXES
from ..processing.open_file import (
    LabelledAddress,
    LabelledBytes,
    data_bytes,
    decode_base64,
    scheme,
    split_selection,
)
from ..processing.processor import Lfm2VlProcessor
from .fields import Fields
from .limits import Limits

NAMES = {"image": "picture", "video": "video"}
EXAMPLES = {"image": "data:image/png;base64,iVBO", "video": "data:video/mp4;base64,AAAA"}
PDF = "application/pdf"
DETAILS = ("auto", "low", "high")


class Pictures:
    """The pictures and videos of one request: an item of a message's content for each, and what is asked of all the
    pictures."""

    def __init__(self, limits: Limits, allow_urls: bool):
        self._limits, self._allow_urls = limits, allow_urls
        self._counts = {"image": 0, "video": 0}
        self._detail: str | None = None

    def from_url(self, fields: Fields, name: str, url: str, of: Literal["image", "video"] = "image") -> dict[str, Any]:
        """The item of a picture or video at an address."""
        kind = scheme(url)
        if kind == "data:":
            self._add(fields, name, of)
            try:
                data = data_bytes(url, SourcePolicy(max_bytes=self._limits.body_bytes))
            except ImageError:
                fields.fail(name, f"is no data URI in base64, such as {EXAMPLES[of]}...")
            return {"type": of, of: LabelledBytes(fields.path(name), data)}
        if kind not in ("http:", "https:"):
            fields.fail(name, f"is neither a data URI nor an http(s) address; send the {NAMES[of]} as a data URI")
        if not self._allow_urls:
            fields.fail(name, "is an address, which this server does not fetch (--allow-urls); send a data URI")
        self._add(fields, name, of)
        if of == "video":
            return {"type": of, "url": url}
        return {"type": of, of: LabelledAddress(fields.path(name), url)}

    def from_file(self, fields: Fields, by_address: bool) -> dict[str, Any]:
        """The item of OpenAI's file: a video, or a PDF document. `by_address`: `file_url` may name it."""
        fields.refuse(("file_id",), "no files are kept; send the content as a data URI")
        fields.text("filename", longest=1000)  # the content says what it is
        url = fields.text("file_url") if by_address else None
        if url is not None and "file_data" in fields:
            fields.fail("file_url", "and file_data are two files; give one of them")
        name = "file_data" if url is None else "file_url"
        url = fields.text(name, required=True) if url is None else url
        kind = media_type(url)
        if kind.startswith("video/"):
            fields.only("detail", "auto")
            return self.from_url(fields, name, url, "video") | {"fps": fields.number("fps", 0, 1000, above=True)}
        if kind != PDF:
            if name == "file_data" and ":" not in url[:32]:
                fields.fail(name, f"is no data URI, such as data:{PDF};base64,...")
            picture = "input_image" if by_address else "image_url"
            fields.fail(name, f"is neither a video nor a PDF document by its type; send a picture as {picture}")
        made = self.from_url(fields, name, url)
        self.set_detail(fields)
        return made

    def from_source(self, source: Fields) -> dict[str, Any]:
        """The item of Anthropic's source of a picture or document."""
        if source.choice("type", ("base64", "url"), required=True) == "url":
            return self.from_url(source, "url", source.text("url", required=True))
        source.text("media_type", required=True)  # the bytes say what they are
        text = source.text("data", required=True)
        self._add(source, "data", "image")
        try:
            data = decode_base64(text)
        except ImageError:
            source.fail("data", "is no base64; encode the bytes of a picture file")
        return {"type": "image", "image": LabelledBytes(source.path("data"), data)}

    def set_detail(self, fields: Fields) -> None:
        """Takes OpenAI's `detail` of a picture. A request has one picture policy, so all its pictures have the same."""
        detail = fields.choice("detail", DETAILS) or "auto"
        if self._detail not in (None, detail):
            fields.fail("detail", f"is {detail}, but {self._detail} before; all pictures of a request need the same")
        self._detail = detail

    def overrides(self, fields: Fields) -> dict[str, Any]:
        """The picture policy of the request: fields that neither protocol has."""
        given = {
            "max_image_tokens": fields.whole("max_image_tokens", 1, 2**16),
            "min_image_tokens": fields.whole("min_image_tokens", 1, 2**16),
            "do_image_splitting": fields.flag("tiling"),
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def detail(self) -> str:
        return self._detail or "auto"

    def _add(self, fields: Fields, name: str, of: Literal["image", "video"]) -> None:
        self._counts[of] += 1
        most = self._limits.pictures if of == "image" else self._limits.videos
        if self._counts[of] > most:
            fields.fail(name, f"is {NAMES[of]} {self._counts[of]}; a request may have {most}")


def media_type(url: str) -> str:
    """The type of a file that a data URI states, or that a video or PDF document has whose address ends so; else ""."""
    if scheme(url) == "data:":
        return url.strip().partition(":")[2].partition(",")[0].partition(";")[0].strip().lower()
    path = split_selection(url.partition("?")[0])[0].partition("#")[0].lower()
    if path.endswith(VIDEO_SUFFIXES):
        return "video/*"
    return PDF if path.endswith(".pdf") else ""


def detail_overrides(detail: str, processor: Lfm2VlProcessor) -> dict[str, Any]:
    """The picture policy that OpenAI's `detail` means: as few tokens as the checkpoint gives a picture; or tiles."""
    config = processor.image_processor.config
    return dict({"low": config.coarsest, "high": config.finest}.get(detail, {}))
