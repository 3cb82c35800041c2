"""Videos of requests to a server: OpenAI's client with `video_url` parts; limits; other protocols and models."""

import base64
import mimetypes
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend
from pdfs import RED_LEFT, pdf
from servers import SAFE, serving, settings_of
from videos import CLIP, clip_uri

from mlx_lfm2vl import GenerationOptions, generate, load, load_video
from mlx_lfm2vl.processing.not_pictures import VIDEO_SUFFIXES

URI = clip_uri()
GREEDY = GenerationOptions(max_tokens=12, temperature=0)


@cache_by_backend
def loaded(name: str) -> Loaded:
    return load(GOLDEN / name)


@pytest.fixture(scope="module", name="client")
def running():
    with serving(settings_of(GOLDEN / "lfm3", GOLDEN / "gen2")) as server:
        yield server.openai()


def asked(url: str = URI, **more: Any) -> Any:
    return [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url, **more}}, words("What?")]}]


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def answer(client: openai.OpenAI, model: str, messages: Any) -> Any:
    made = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    return made.choices[0].message.content


@pytest.mark.parametrize("model", ["lfm3", "gen2"])
@pytest.mark.parametrize("fps", [None, 4])
def test_a_video_of_a_request_is_answered_as_the_library_does(client, model, fps):
    expected = generate(*loaded(model), "What?", videos=load_video(CLIP, fps=fps), options=GREEDY)
    assert answer(client, model, asked(**({} if fps is None else {"fps": fps}))) == expected


def test_a_video_and_a_picture_of_a_request_stand_in_their_order(client):
    content = asked()[0]["content"]
    picture = {"type": "image_url", "image_url": {"url": URI}}
    ours = [{"type": "video", "video": CLIP}, {"type": "image", "image": CLIP}, words("What?")]
    expected = generate(*loaded("lfm3"), [{"role": "user", "content": ours}], options=GREEDY)
    assert answer(client, "lfm3", [{"role": "user", "content": [content[0], picture, content[1]]}]) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("clip.mp4", "neither a data URI nor an http(s) address; send the video as a data URI"),
        ("file:///etc/passwd", "neither a data URI nor"),
        ("https://example.org/a.mp4", "which this server does not fetch"),
        ("data:video/mp4;base64,*", "no data URI in base64, such as data:video/mp4;base64"),
        ("data:video/mp4;base64,aGVsbG8=", "is no video that can be read"),
    ],
)
def test_a_video_that_cannot_be_read_is_refused_by_its_place(client, url, said):
    with pytest.raises(openai.BadRequestError) as refused:
        answer(client, "lfm3", asked(url))
    assert said in str(refused.value) and refused.value.param == "messages[0].content[0].video_url.url"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (asked(fps=0), "messages[0].content[0].video_url.fps"),
        (asked(detail="low"), "messages[0].content[0].video_url.detail"),
        ([{"role": "system", "content": asked()[0]["content"]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [asked()[0]["content"][0]] * 5}], "messages[0].content[4].video_url.url"),
    ],
)
def test_fields_places_and_numbers_of_videos_are_checked(client, messages, param):
    with pytest.raises(openai.BadRequestError) as refused:
        answer(client, "lfm3", messages)
    assert refused.value.param == param


def test_frames_that_are_pictures_count_as_such():
    settings = settings_of(GOLDEN / "gen2")
    settings.model_settings.load["source_policy"] = replace(SAFE, max_pictures=5)
    with (
        serving(settings) as server,
        pytest.raises(openai.BadRequestError, match="6 pictures in one call, pages and frames counted, but at most 5"),
    ):
        answer(server.openai(), "gen2", asked())


FILE = {"type": "input_file", "filename": "clip.mp4", "file_data": URI.replace("image/png", "video/mp4")}


def response(client: openai.OpenAI, model: str, *parts: dict[str, Any]) -> Any:
    content: Any = [*parts, {"type": "input_text", "text": "What?"}]
    return client.responses.create(
        model=model, input=[{"role": "user", "content": content}], max_output_tokens=12, temperature=0
    )


@pytest.mark.parametrize("model", ["lfm3", "gen2"])
@pytest.mark.parametrize("fps", [{}, {"fps": 4}], ids=["", "4 fps"])
def test_responses_take_a_video_as_a_file(client, model, fps):
    expected = generate(*loaded(model), "What?", videos=load_video(CLIP, **fps), options=GREEDY)
    assert response(client, model, FILE | fps).output_text == expected


def test_responses_take_a_document_as_a_file(client):
    pytest.importorskip("pypdfium2")
    data = pdf([RED_LEFT])
    part = {"type": "input_file", "file_data": f"data:application/pdf;base64,{base64.b64encode(data).decode()}"}
    assert response(client, "gen2", part).output_text == generate(*loaded("gen2"), "What?", data, options=GREEDY)


@pytest.mark.parametrize(
    ("part", "place", "said"),
    [
        ({"file_data": URI}, "file_data", "neither a video nor a PDF document by its type"),
        ({"file_data": "clip.txt"}, "file_data", "is no data URI, such as data:application/pdf;base64"),
        ({"file_data": "clip.mp4"}, "file_data", "neither a data URI nor an http(s) address; send the video as"),
        ({"file_data": "data:video/mp4;base64,aGVsbG8="}, "file_data", "is no video that can be read"),
        ({"file_url": "https://example.org/a.mp4?b=c"}, "file_url", "which this server does not fetch"),
        ({"file_url": "https://example.org/a.mp4", "file_data": URI}, "file_url", "give one of them"),
        ({"file_id": "file-1"}, "file_id", "no files are kept"),
        ({**FILE, "fps": 0}, "fps", "expected a number above 0"),
        ({**FILE, "detail": "low"}, "detail", "which is not supported here"),
        ({}, "file_data", "is missing"),
    ],
    ids=["picture", "text", "path", "damaged", "address", "both", "id", "fps", "detail", "nothing"],
)
def test_a_file_of_a_response_is_refused_by_its_place(client, part, place, said):
    with pytest.raises(openai.BadRequestError) as refused:
        response(client, "lfm3", {"type": "input_file", **part})
    assert said in str(refused.value) and refused.value.param == f"input[0].content[0].{place}"


@pytest.fixture
def bare_system(monkeypatch):
    """A system without a list of types, as in slim containers."""
    monkeypatch.setattr(mimetypes, "knownfiles", [])
    mimetypes.init()
    yield
    monkeypatch.undo()
    mimetypes.init()


@pytest.mark.parametrize("suffix", [*VIDEO_SUFFIXES, ".pdf", ".PDF[2]"])
def test_addresses_of_files_are_told_by_their_ends(client, bare_system, suffix):
    with pytest.raises(openai.BadRequestError, match="which this server does not fetch"):
        response(client, "lfm3", {"type": "input_file", "file_url": f"https://example.org/a{suffix}"})


@pytest.mark.parametrize("protocol", ["chat", "responses"])
def test_text_models_take_no_videos(protocol):
    with serving(settings_of(GOLDEN / "lfm2_text")) as server:
        client = server.openai()
        with pytest.raises(openai.BadRequestError, match="this model reads text alone"):
            if protocol == "chat":
                answer(client, "lfm2_text", asked())
            else:
                response(client, "lfm2_text", FILE)


def test_anthropic_s_messages_have_no_videos():
    with serving(settings_of(GOLDEN / "lfm3")) as server:
        source = {"type": "base64", "media_type": "video/mp4", "data": "AAAA"}
        content: Any = [{"type": "video", "source": source}]
        with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.type is"):
            server.anthropic().messages.create(
                model="lfm3", max_tokens=1, messages=[{"role": "user", "content": content}]
            )


def test_the_page_may_show_videos_of_the_browser():
    with serving(settings_of(GOLDEN / "lfm3")) as server:
        _, headers, _ = server.raw("GET", "/")
    assert "media-src blob:" in headers["content-security-policy"]


PDF = f"data:application/pdf;base64,{base64.b64encode(pdf([RED_LEFT] * 3)).decode()}"
JPEG = "data:video/mp4;base64," + base64.b64encode(b"\xff\xd8\xff" + bytes(50)).decode()
NO_PICTURE = "data:image/png;base64," + base64.b64encode(b"\0\0\0\x20ftypisom" + bytes(50)).decode()
SHOWN = {"type": "image_url", "image_url": {"url": NO_PICTURE}}
AS_VIDEO = "not a picture but a video; send it to /v1/chat/completions as video_url, or to /v1/responses as input_file"


@pytest.fixture(scope="module")
def few():
    """A server whose documents may have two pages."""
    settings = settings_of(GOLDEN / "gen2")
    hosting = replace(settings.model_settings, load={"source_policy": replace(SAFE, max_pages=2)})
    with serving(replace(settings, model_settings=hosting)) as server:
        yield server


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (SHOWN, AS_VIDEO),
        (asked(PDF)[0]["content"][0], "PDF document, not a video; give it as a picture (image_url, input_image)"),
        (asked(JPEG)[0]["content"][0], "is a picture, not a video; give it as one (image_url, input_image)"),
        (
            {"type": "image_url", "image_url": {"url": PDF}},
            "more than 2 pages at a time (--max-pictures of the server); give a document of fewer",
        ),
    ],
    ids=["video", "document", "picture", "pages"],
)
def test_errors_of_media_say_what_a_caller_can_do(few, part, says):
    with pytest.raises(openai.BadRequestError) as refused:
        answer(few.openai(), "gen2", [{"role": "user", "content": [part, words("What?")]}])
    place = f"messages[0].content[0].{part['type']}.url"
    assert refused.value.param == place and refused.value.message.endswith(says)
