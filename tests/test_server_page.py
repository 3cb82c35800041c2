"""The server's page in a real Chromium, against a real server on loopback."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN
from servers import ANSWER, EXAMPLES, serving, settings_of, until
from videos import rising, write_video

from mlx_lfm2vl import generate, load
from mlx_lfm2vl.server.access import Access

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine (apt install chromium)")
SCENE = str(EXAMPLES / "scene.png")
QUESTION = "What is in this image?"
BOXES = "Provide bounding boxes for the pink square."


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def server(endless):
    """The demo, random weights, and some whose answers do not end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LFM2VL_BACKEND", "numpy")
        with serving(settings_of("demo", GOLDEN / "gen2", endless)) as running:
            yield running


class Page:
    """A page in a browser of its own. `asked`: addresses of its requests; `problems`: errors that it met."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(
            **{"viewport": {"width": 1100, "height": 750}, "permissions": ["clipboard-read", "clipboard-write"]}
            | options
        )
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda told: self.problems.append(told.text) if told.type == "error" else None)
        self.page.goto(url)
        self.page.wait_for_selector("#model option", state="attached")

    def ask(self, text, *pictures, wait=True):
        if pictures:
            self.page.set_input_files("#files", list(pictures))
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        if wait:
            self.page.wait_for_selector(".answer:last-child .message-tools")

    @property
    def answer(self):
        return self.page.inner_text(".answer:last-child .answer-body")


@pytest.fixture
def opened(browser, server):
    made = Page(browser, server.url)
    yield made
    made.context.close()
    assert made.problems == []


def test_an_answer_is_the_librarys(opened):
    opened.ask(QUESTION, SCENE)
    assert opened.answer == ANSWER
    assert re.search(r"21 tokens · .* · 33 in the question", opened.page.inner_text(".answer .message-tools"))


def test_an_answer_grows_while_it_comes(opened):
    opened.page.select_option("#model", "model")
    opened.ask("Go on.", wait=False)
    shown: set[str] = set()

    def several():
        shown.add(opened.answer)
        return len(shown) > 5

    until(several)
    opened.page.click("#stop")


def test_a_second_question_shows_its_cached_tokens(opened):
    opened.ask(QUESTION, SCENE)
    opened.ask("And what else?")
    shown = opened.page.inner_text(".answer:last-child .message-tools")
    ((prompt, cached),) = re.findall(r"(\d+) in the question, (\d+) cached", shown)
    assert int(prompt) - int(cached) < 20


def test_pictures_are_pasted_and_dropped(opened):
    give = """([data, kind]) => {
        const files = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        files.items.add(new File([bytes], "scene.png", {type: "image/png"}));
        if (kind === "paste") document.getElementById("prompt").dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: files, bubbles: true, cancelable: true}));
        else for (const name of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(name, {dataTransfer: files, bubbles: true, cancelable: true}));
    }"""
    for kind in ("paste", "drop"):
        opened.page.evaluate(give, [base64.b64encode(Path(SCENE).read_bytes()).decode(), kind])
    opened.page.wait_for_selector("#pictures li:nth-child(2) img")
    assert opened.page.is_hidden("#drop")
    opened.page.click("#pictures li:first-child .icon-button")
    opened.ask(QUESTION)
    assert opened.answer == ANSWER


def test_a_video_is_shown_and_asked_about(opened, tmp_path):
    clip = write_video(tmp_path / "clip.webm", rising(), 4, codec="libvpx-vp9")
    opened.page.select_option("#model", "gen2")
    opened.page.click("#open-settings")
    opened.page.fill("#settings [name=max_completion_tokens]", "12")
    opened.page.click("#settings .primary")
    opened.page.set_input_files("#files", str(clip))
    duration = "document.querySelector('#pictures video')?.duration"
    until(lambda: opened.page.wait_for_timeout(20) or opened.page.evaluate(duration) == 2)
    with opened.page.expect_request("**/chat/completions") as sent:
        opened.ask("What moves?")
    (part, _) = sent.value.post_data_json["messages"][0]["content"]
    assert part["type"] == "video_url" and part["video_url"]["url"].startswith("data:video/webm;base64,")
    expected = generate(*load(GOLDEN / "gen2"), "What moves?", videos=clip, max_tokens=12)
    assert opened.answer == expected.strip()
    opened.page.wait_for_selector(".question video[aria-label='clip.webm']")


def test_a_file_that_is_no_picture_is_refused_with_its_name(opened, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    opened.page.set_input_files("#files", str(tmp_path / "notes.txt"))
    assert opened.page.inner_text("#notice") == "notes.txt is no picture, video or PDF document."
    assert opened.page.is_hidden("#pictures")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stopping_ends_the_answer_on_the_server(opened, server, how):
    opened.page.select_option("#model", "model")
    earlier = len(server.lines)
    opened.ask("Go on.", wait=False)
    until(lambda: len(opened.answer) > 40)
    opened.page.click("#stop") if how == "button" else opened.page.keyboard.press("Escape")
    opened.page.wait_for_selector(".answer .message-tools")
    assert "Stopped." in opened.page.inner_text(".answer .foot")
    asked = until(lambda: [line for line in server.lines[earlier:] if "POST" in line and "model=model" in line])
    assert " 499 " in asked[-1]  # the client went away
    assert opened.page.is_visible("#send")


def test_an_answer_that_is_given_again_can_be_brought_back(opened):
    for text in (QUESTION, "And what else?"):
        opened.ask(text, *([SCENE] if text == QUESTION else []))
    before = opened.page.inner_text("#messages")
    opened.page.click("[aria-label='Answer again'] >> nth=0")
    opened.page.wait_for_selector("#send:visible")
    assert opened.page.locator(".answer").count() == 1 and opened.answer == ANSWER
    opened.page.click("#notice button:text-is('Undo')")
    assert opened.page.inner_text("#messages") == before
    reloaded(opened.page)
    assert opened.page.inner_text("#messages") == before


def reloaded(page):
    """The page anew, with the conversation that was open."""
    page.wait_for_timeout(200)  # until it is being kept; what is read comes behind what is written
    page.evaluate("import('/static/store.js').then((store) => store.loadConversations())")
    page.reload()
    page.wait_for_selector(".question")


def test_a_question_is_edited_in_its_place(opened):
    for text in (QUESTION, "And what else?"):
        opened.ask(text, *([SCENE] if text == QUESTION else []))
    before = opened.page.inner_text("#messages")
    edit = "[aria-label='Edit the question'] >> nth=0"
    for leave in ("Escape", "Cancel"):
        opened.page.click(edit)
        assert opened.page.input_value(".edit textarea") == QUESTION
        opened.page.fill(".edit textarea", "something else")
        opened.page.press(".edit textarea", "Escape") if leave == "Escape" else opened.page.click(
            ".edit >> text=Cancel"
        )
        assert opened.page.inner_text("#messages") == before
    opened.page.click(edit)
    reloaded(opened.page)
    assert opened.page.inner_text("#messages") == before
    opened.page.click(edit)
    opened.page.fill(".edit textarea", BOXES)
    opened.page.press(".edit textarea", "Enter")
    opened.page.wait_for_selector("#send:visible")
    assert opened.page.locator(".said").all_inner_texts() == [BOXES]
    assert opened.page.locator(".question .thumbnail").count() == 1
    assert opened.page.locator(".conversation").all_inner_texts() == [BOXES]
    opened.page.wait_for_selector(".box-picture")
    opened.page.click("#notice button:text-is('Undo')")
    assert opened.page.inner_text("#messages") == before


def test_windows_show_each_others_turns(opened, server):
    opened.ask("One.")
    other = opened.context.new_page()
    other.goto(server.url)
    other.click(".conversation")
    opened.ask("Two.")
    other.wait_for_selector(".answer:nth-of-type(4)")
    other.fill("#prompt", "Three.")
    other.press("#prompt", "Enter")
    opened.page.wait_for_selector(".said:text-is('Three.')")
    opened.page.wait_for_selector(".answer:nth-of-type(6) .message-tools")
    reloaded(opened.page)
    assert opened.page.locator(".said").all_inner_texts() == ["One.", "Two.", "Three."]
    opened.page.on("dialog", lambda dialog: dialog.accept())
    opened.page.hover("#conversations li")
    opened.page.click("#conversations li .icon-button")
    other.wait_for_selector("#welcome:visible")


def test_a_conversation_that_two_windows_go_on_with_becomes_two(opened, server):
    opened.ask("One.")
    other = opened.context.new_page()
    other.goto(server.url)
    other.click(".conversation")
    held: list[Any] = []
    for page, text in ((opened.page, "Left."), (other, "Right.")):
        page.route("**/v1/chat/completions", lambda route: held.append(route))
        page.fill("#prompt", text)
        page.press("#prompt", "Enter")
        page.wait_for_selector("#stop:visible")
    until(lambda: other.wait_for_timeout(20) or len(held) == 2)
    for route in held:
        route.continue_()
    for page in (opened.page, other):
        page.wait_for_selector("#send:visible")
    reloaded(opened.page)
    opened.page.wait_for_selector(".conversation >> nth=1")
    titles = opened.page.locator(".conversation").all_inner_texts()
    assert sorted(titles) == ["One.", "One. (copy)"]
    asked = set()
    for title in titles:
        opened.page.click(f".conversation:text-is('{title}')")
        asked.update(opened.page.locator(".said").all_inner_texts())
    assert asked == {"One.", "Left.", "Right."}


def test_a_new_conversation_begins_empty(opened):
    opened.page.click("#open-form")
    opened.page.click("#form-use")
    opened.ask("Hello.")
    opened.page.set_input_files("#files", SCENE)
    opened.page.fill("#prompt", "a draft")
    opened.page.click("#new")
    empty = (
        opened.page.input_value("#prompt"),
        opened.page.is_visible("#pictures"),
        opened.page.is_visible("#form-state"),
    )
    assert empty == ("", False, False)
    opened.page.click(".conversation")
    assert opened.page.input_value("#prompt") == "a draft"
    assert opened.page.is_visible("#pictures li") and opened.page.is_visible("#form-state")
    opened.page.click("#new")
    opened.page.fill("#prompt", "another")
    opened.page.click("#new")
    assert opened.page.input_value("#prompt") == ""
    opened.page.click("#notice button:text-is('Undo')")
    assert opened.page.input_value("#prompt") == "another"


def test_a_notice_covers_nothing_of_the_composer(opened, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    opened.page.click("#open-form")
    opened.page.click("#form-use")
    opened.page.set_input_files("#files", [SCENE, str(tmp_path / "notes.txt")])
    opened.page.wait_for_selector("#notice:visible")
    notice, composer = (opened.page.locator(name).bounding_box() for name in ("#notice", "#composer"))
    assert notice["y"] + notice["height"] <= composer["y"]


def test_a_pdf_document_is_asked_about(opened):
    document = EXAMPLES / "documents" / "pages.pdf"
    opened.page.set_input_files("#files", str(document))
    assert opened.page.inner_text("#pictures .document") == "pages.pdf"
    opened.ask("Which image shows a red triangle?")
    expected = generate(*load("demo"), "Which image shows a red triangle?", document)
    assert opened.answer == expected.strip()
    assert opened.page.inner_text(".question .document") == "pages.pdf"


def test_an_answer_is_copied(opened):
    opened.ask(QUESTION, SCENE)
    opened.page.click("[aria-label='Copy the answer']")
    opened.page.wait_for_selector("#notice:not([hidden])")
    assert opened.page.evaluate("navigator.clipboard.readText()") == ANSWER


def test_conversations_are_kept_and_deleted(opened):
    opened.ask(QUESTION, SCENE)
    opened.page.click("#new")
    opened.ask("Hello.")
    opened.page.reload()
    opened.page.wait_for_selector("#conversations li:nth-child(2)")
    assert opened.page.locator(".conversation").all_inner_texts() == ["Hello.", QUESTION]
    opened.page.click(f".conversation:text('{QUESTION}')")
    assert opened.answer == ANSWER
    until(lambda: opened.page.evaluate("document.querySelector('.thumbnail img').naturalWidth"))
    opened.page.on("dialog", lambda dialog: dialog.accept())
    opened.page.hover("#conversations li:last-child")
    opened.page.click("#conversations li:last-child .icon-button")
    until(lambda: opened.page.locator(".conversation").count() == 1)
    opened.page.reload()
    opened.page.wait_for_selector(".conversation")
    assert opened.page.locator(".conversation").all_inner_texts() == ["Hello."]


def test_a_question_outlives_a_page_that_is_closed_meanwhile(opened):
    opened.page.select_option("#model", "model")
    opened.ask("Go on.", SCENE, wait=False)
    until(lambda: len(opened.answer) > 40)
    opened.page.reload()
    opened.page.wait_for_selector(".question")
    assert opened.page.inner_text(".question .said") == "Go on."
    assert "Stopped." in opened.page.inner_text(".answer .foot")


def test_everything_comes_from_the_server_itself(opened, server):
    opened.ask(QUESTION, SCENE)
    assert {url.split("/static")[0].rstrip("/") for url in opened.asked if "/static" in url} == {server.url}
    assert all(url.startswith((server.url, "blob:", "data:")) for url in opened.asked)


def test_settings_reach_the_server_and_stay(opened):
    opened.page.click("#open-settings")
    opened.page.fill("#settings [name=max_completion_tokens]", "5")
    opened.page.select_option("#settings [name=max_image_tokens]", "64")
    opened.page.click("#settings summary")
    more = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": -0.3}
    for name, value in more.items():
        opened.page.fill(f"#settings [name={name}]", str(value))
    opened.page.click("#settings .primary")
    opened.page.reload()
    with opened.page.expect_request("**/v1/chat/completions") as sent:
        opened.ask(QUESTION, SCENE)
    body = sent.value.post_data_json
    assert (body["max_completion_tokens"], body["max_image_tokens"], body["model"]) == (5, 64, "demo")
    assert {name: body[name] for name in more} == more
    assert "The answer stopped at its longest length." in opened.page.inner_text(".answer .foot")


def test_a_question_waits_for_the_list_of_models(opened):
    held: list[Any] = []
    opened.page.route("**/v1/models", lambda route: held.append(route))
    opened.page.reload()
    opened.ask(QUESTION, SCENE, wait=False)
    until(lambda: opened.page.wait_for_timeout(20) or len(held) >= 2)  # a third comes after 1.5 s
    for route in held:
        route.continue_()
    opened.page.wait_for_selector(".answer:last-child .message-tools")
    assert opened.answer == ANSWER


def test_a_suggested_question_keeps_the_pictures(opened):
    opened.page.set_input_files("#files", SCENE)
    opened.page.click("#ideas button >> nth=0")
    opened.page.press("#prompt", "Enter")
    opened.page.wait_for_selector(".answer .message-tools")
    assert opened.page.locator(".question .thumbnail").count() == 1


def test_a_picture_that_cannot_be_read_is_called_by_its_name(opened, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    opened.page.click("#open-settings")
    opened.page.fill("#settings [name=system]", "Be short.")
    opened.page.click("#settings .primary")
    opened.ask("What is this?", SCENE, str(tmp_path / "broken.png"))
    assert opened.page.inner_text(".answer .error").startswith("broken.png: not a picture")
    opened.problems.clear()  # the browser notes a response of 400


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "strng"}, '#/type is "strng", expected one or several of null, boolean'),
        ({"properties": {"a": {"items": {"type": ["string", 3]}}}}, "#/properties/a/items/type is "),
        ({"anyOf": []}, "#/anyOf is [], expected a list of schemas"),
        ({"required": "a"}, '#/required is "a", expected a list of names'),
        ({"enum": []}, "#/enum is [], expected a list that is not empty"),
        ({"maxItems": -1}, "#/maxItems is -1, expected a whole number"),
        ({"items": 3}, "#/items is 3, expected a schema"),
        ([], "a schema is an object"),
    ],
)
def test_a_bad_schema_is_refused_in_its_dialog(opened, schema, why):
    opened.page.click("#open-form")
    opened.page.fill("#form-schema", json.dumps(schema))
    opened.page.click("#form-use")
    assert why in opened.page.inner_text("#form-error")
    assert opened.page.is_visible("#form") and not opened.page.is_visible("#form-state")


def test_a_schema_that_the_server_refuses_is_called_a_schema(opened):
    opened.page.click("#open-form")
    opened.page.fill("#form-schema", '{"type": "string", "not": {}}')
    opened.page.click("#form-use")
    opened.ask("Hello.")
    shown = opened.page.inner_text(".answer .error")
    assert shown.startswith("The schema") and '"not" cannot be held' in shown and "response_format" not in shown
    assert opened.page.locator(".answer pre").count() == 0
    opened.problems.clear()  # the browser notes a response of 400


def test_an_error_of_the_server_is_shown_in_its_words(opened):
    opened.page.click("#open-settings")
    opened.page.fill("#settings [name=system]", "x" * 200_000)
    opened.page.click("#settings .primary")
    opened.ask("Hello.")
    assert "positions" in opened.page.inner_text(".answer .error")
    opened.problems.clear()  # the browser notes a response of 400


def test_light_and_dark_follow_the_system_and_the_choice(browser, server):
    page = Page(browser, server.url, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.page.evaluate(background) == "rgb(23, 24, 28)"
    page.page.click("#theme")
    page.page.reload()
    assert page.page.evaluate(background) == "rgb(255, 255, 255)"
    page.page.click("#theme")
    assert page.page.get_attribute("#theme", "aria-label") == "Theme: dark"
    page.page.click("#theme")
    assert page.page.get_attribute("#theme", "aria-label") == "Theme: as the system"
    page.page.emulate_media(color_scheme="light")
    until(lambda: page.page.wait_for_timeout(20) or page.page.evaluate(background) == "rgb(255, 255, 255)")
    page.context.close()


def test_a_phone_shows_all_without_scrolling_sideways(browser, server):
    page = Page(browser, server.url, viewport={"width": 360, "height": 700}, has_touch=True)
    page.ask(QUESTION, SCENE)
    page.ask(BOXES)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.page.evaluate("document.getElementById('scroll').scrollWidth <= 360")
    page.page.click("#open-sidebar")
    page.page.wait_for_selector(".conversation:visible")
    page.page.keyboard.press("Escape")
    page.page.wait_for_selector(".conversation", state="hidden")
    page.context.close()


def test_the_keyboard_alone_is_enough(opened):
    opened.page.keyboard.type("Hello.")  # the field has the focus
    opened.page.keyboard.press("Shift+Enter")
    opened.page.keyboard.type("Again.")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector(".answer .message-tools")
    assert opened.page.inner_text(".question .said") == "Hello.\nAgain."
    seen = set()
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        seen.add(opened.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.id"))
    assert {"Copy the answer", "Answer again", "Edit the question", "Settings", "prompt", "Send", "new"} <= seen


def test_a_server_with_a_key_asks_for_it(browser):
    with serving(settings_of("demo", access=Access(api_key="a secret"))) as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        page.wait_for_selector("#key[open]")
        assert page.inner_text("#key-error") == ""
        page.fill("#key-text", "a guess")
        page.press("#key-text", "Enter")
        page.wait_for_selector("#key-error:text-is('The server refused this key.')")
        page.fill("#key-text", "a secret")
        page.press("#key-text", "Enter")
        page.wait_for_selector("#model option", state="attached")
        assert page.locator("#model option").all_inner_texts() == ["demo"]
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, server, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra: test)")
    page = Page(browser, server.url, color_scheme=scheme)

    def check(where):
        found = axe.Axe().run(page.page).response["violations"]
        serious = [each["id"] for each in found if each["impact"] in ("serious", "critical")]
        assert serious == [], f"{where}: {found}"

    check("welcome")
    page.ask(BOXES, SCENE)
    check("boxes")
    for button, dialog in (("#open-settings", "#settings"), ("#open-form", "#form")):
        page.page.click(button)
        check(dialog)
        page.page.keyboard.press("Escape")
    page.context.close()
