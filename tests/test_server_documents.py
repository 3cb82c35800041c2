"""PDF documents of chat completions and of Anthropic's messages: their pages are seen as pictures."""

import base64
import functools
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest
from conftest import GOLDEN
from pdfs import RED_LEFT, pdf
from servers import SAFE, data_uri, serving, settings_of

from mlx_lfm2vl import GenerationOptions, generate, load

pytest.importorskip("pypdfium2")
DOCUMENT = pdf([RED_LEFT] * 2)
DATA = base64.b64encode(DOCUMENT).decode()
URI = f"data:application/pdf;base64,{DATA}"
SOURCE = {"type": "base64", "media_type": "application/pdf", "data": DATA}


@functools.cache
def expected() -> str:
    options = GenerationOptions(max_tokens=6, temperature=0)
    return generate(*load(GOLDEN / "gen2"), "What?", DOCUMENT, options=options)


@pytest.fixture(scope="module")
def server():
    settings = settings_of(GOLDEN / "gen2")
    settings.model_settings.load["source_policy"] = replace(SAFE, max_pictures=3)
    with serving(settings) as running:
        yield running


def ask_chat(server, *parts: dict[str, Any]) -> Any:
    content: Any = [*parts, {"type": "text", "text": "What?"}]
    return server.openai().chat.completions.create(
        model="gen2", messages=[{"role": "user", "content": content}], max_tokens=6, temperature=0
    )


def ask_messages(server, *blocks: dict[str, Any]) -> Any:
    content: Any = [*blocks, {"type": "text", "text": "What?"}]
    return server.anthropic().messages.create(
        model="gen2", messages=[{"role": "user", "content": content}], max_tokens=6, extra_body={"temperature": 0}
    )


def file(**fields: str) -> dict[str, Any]:
    return {"type": "file", "file": fields}


def test_chat_completions_take_a_document_as_a_file(server):
    made = ask_chat(server, file(file_data=URI, filename="two pages.pdf"))
    assert made.choices[0].message.content == expected()


@pytest.mark.parametrize("more", [{}, {"citations": {"enabled": False}, "cache_control": {"type": "ephemeral"}}])
def test_messages_take_a_document(server, more):
    (said,) = ask_messages(server, {"type": "document", "source": SOURCE, **more}).content
    assert said.text == expected()


def test_pages_of_documents_count_as_pictures(server):
    with pytest.raises(openai.BadRequestError, match="4 pictures in one call, pages and frames counted, but at most 3"):
        ask_chat(server, file(file_data=URI), file(file_data=URI))
    block = {"type": "document", "source": SOURCE}
    with pytest.raises(anthropic.BadRequestError, match="4 pictures in one call, pages and frames counted"):
        ask_messages(server, block, block)


@pytest.mark.parametrize(
    ("fields", "place", "said"),
    [
        ({"file_id": "file-1"}, "file_id", "no files are kept; send the content as a data URI"),
        ({"filename": "a.pdf"}, "file_data", "is missing"),
        ({"file_data": DATA}, "file_data", "is no data URI, such as data:application/pdf;base64"),
        ({"file_data": data_uri("scene")}, "file_data", "send a picture as image_url"),
        ({"file_data": "https://example.org/a.pdf"}, "file_data", "which this server does not fetch"),
        ({"file_data": URI[:200]}, "file_data", "PDFium cannot open it"),
        ({"file_url": "https://example.org/a.pdf", "file_data": URI}, "file_url", "is not known"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_by_its_place(server, fields, place, said):
    with pytest.raises(openai.BadRequestError) as refused:
        ask_chat(server, file(**fields))
    assert refused.value.param == f"messages[0].content[0].file.{place}" and said in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": SOURCE, "title": "Two pages"}, "title is not supported here; put it into a text"),
        ({"source": SOURCE, "citations": {"enabled": True}}, "citations.enabled is true, which is not supported"),
        ({"source": {"type": "text", "media_type": "text/plain", "data": "a"}}, "expected one of base64, url"),
        ({"source": {"type": "url", "url": "https://example.org/a.pdf"}}, "which this server does not fetch"),
        ({"source": SOURCE | {"data": DATA[:200]}}, r"messages\[0\].content\[0\].source.data: damaged .PDFium"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused(server, fields, said):
    with pytest.raises(anthropic.BadRequestError, match=said):
        ask_messages(server, {"type": "document", **fields})
