"""The library's tasks over HTTP give what the library gives."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import Loaded, cache_by_backend
from pdfs import RING, coloured, pdf
from servers import EXAMPLES, SAFE, base64_of, data_uri, serving, settings_of

from mlx_lfm2vl import describe, detect, extract, load, point, read
from mlx_lfm2vl.tasks.export import plain

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "description": "the colour of the shape in the middle"}},
    "required": ["colour"],
}


def pdf_uri(document: bytes) -> str:
    return "data:application/pdf;base64," + base64.b64encode(document).decode()


@cache_by_backend
def demo() -> Loaded:
    return load("demo")


@pytest.fixture(scope="module", params=["mlx", "numpy"])
def server(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LFM2VL_BACKEND", request.param)
        with serving(settings_of()) as running:
            yield running


def post(server, kind, **body) -> tuple[int, Any]:
    status, _, answer = server.raw(
        "POST", f"/v1/{kind}", json.dumps({"model": "demo"} | body), content_type="application/json"
    )
    return status, answer


def test_boxes_and_points_are_those_of_the_library(server):
    files = [EXAMPLES / "boxes.png", EXAMPLES / "scene.png"]
    images = [data_uri("boxes"), data_uri("scene")]
    for kind, function in (("detect", detect), ("point", point)):
        status, made = post(server, kind, images=images, what="ring")
        expected = plain(function(*demo(), files, "ring"))
        assert status == 200 and made["data"] == expected and expected
        assert made["object"] == kind and made["model"] == "demo" and made["usage"]["completion_tokens"] > 5


def test_text_and_descriptions_are_those_of_the_library(server):
    status, made = post(server, "read", images=[data_uri("text")])
    assert status == 200 and made["data"] == plain(read(*demo(), EXAMPLES / "text.png"))
    status, made = post(server, "describe", images=[data_uri("scene")])
    assert status == 200 and made["data"] == describe(*demo(), EXAMPLES / "scene.png")


def test_fields_are_those_of_the_library(server):
    status, made = post(server, "extract", images=[data_uri("shapes")], schema=SCHEMA)
    assert status == 200 and made["data"] == extract(*demo(), EXAMPLES / "shapes.png", SCHEMA)


def test_a_result_that_was_cut_off_says_so(server):
    for longest, reason in ((2, "length"), (300, "stop")):
        status, made = post(server, "describe", images=[data_uri("digit")], max_tokens=longest)
        assert status == 200 and made["finish_reason"] == reason


@pytest.mark.backends("mlx", "numpy")
def test_pages_are_drawn_by_the_policy_of_the_server():
    page = pdf([RING], "0 0 600 600")
    few: dict[str, Any] = {"max_image_tokens": 64, "do_image_splitting": False}
    settings = settings_of()
    settings.model_settings.load.update(few)
    with serving(settings) as server:
        status, made = post(server, "detect", images=[pdf_uri(page)], what="ring")
    expected = plain(detect(*load("demo", **few), page, "ring"))
    assert status == 200 and made["data"] == expected != plain(detect(*demo(), page, "ring"))


@pytest.mark.parametrize("kind", ["describe", "chat/completions"])
def test_pages_of_all_documents_of_a_request_count_as_pictures(kind):
    settings = settings_of()
    settings.model_settings.load["source_policy"] = replace(SAFE, max_pictures=3)
    uris = [pdf_uri(coloured("1 0 0", "0 1 0")), data_uri("scene"), pdf_uri(coloured("0 0 1"))]
    content = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    body = {"images": uris} if kind == "describe" else {"messages": [{"role": "user", "content": content}]}
    with serving(settings) as server:
        status, answer = post(server, kind, **body, max_tokens=1)
    said = "4 pictures in one call, pages and frames counted, but at most 3"
    assert status == 400 and said in answer["error"]["message"]


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("detect", {"images": [data_uri("scene")]}, 400, "what is missing"),
    ("detect", {"images": [], "what": "ring"}, 400, "images is empty"),
    ("detect", {"images": ["/etc/passwd"], "what": "ring"}, 400, "images[0] is neither a data URI nor"),
    ("detect", {"images": [base64_of("scene")], "what": "ring"}, 400, "images[0] is neither"),
    (
        "detect",
        {"images": [data_uri("scene"), "data:image/png;base64,aGVsbG8="], "what": "ring"},
        400,
        "images[1]: not a picture",
    ),
    (
        "detect",
        {"images": [data_uri("boxes")], "what": "ring", "max_tokens": 5},
        422,
        "the answer was cut off by max_tokens; raise it (answer, character ",
    ),
    ("extract", {"images": [data_uri("shapes")], "schema": SCHEMA, "max_tokens": 1}, 422, "cut off by max_tokens"),
    ("detect", {"images": [data_uri("scene")] * 65, "what": "ring"}, 400, "images has 65 items"),
    ("read", {"images": [data_uri("scene")], "what": "ring"}, 400, "what is not known"),
    ("extract", {"images": [data_uri("scene")]}, 400, "schema is missing"),
    ("extract", {"images": [data_uri("scene")], "schema": "/etc/passwd"}, 400, "schema is a text"),
    ("extract", {"images": [data_uri("scene")], "schema": {"type": "nothing"}}, 400, "schema"),
    ("describe", {"images": [data_uri("scene")], "model": "other"}, 404, "not served here"),
    ("describe", {"images": [data_uri("scene")], "deadline": 1e-6}, 504, "before the deadline"),
]


@pytest.mark.parametrize(("kind", "body", "status", "words"), REFUSED, ids=[f"{r[0]} {r[3][:30]}" for r in REFUSED])
def test_what_is_wrong_is_refused(server, kind, body, status, words):
    found, answer = post(server, kind, **body)
    assert found == status and words in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert status != 422 or (answer["error"]["param"], answer["error"]["code"]) == ("max_tokens", "answer_cut_off")
