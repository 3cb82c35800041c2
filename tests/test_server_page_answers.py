"""What the server's page makes of answers, in a real Chromium: tables, boxes, Markdown, and nothing that runs."""

import json

import pytest
from servers import until
from test_server_page import BOXES, CHROMIUM, QUESTION, SCENE, Page, browser, opened, server  # noqa: F401

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine (apt install chromium)")

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "[click](javascript:document.title='owned')",
    "[click](  JaVaScRiPt:alert(1))",
    "[data](data:text/html,<script>alert(1)</script>)",
    "![spy](http://127.0.0.1:1/spy.png)",
    '<iframe src="http://127.0.0.1:1/"></iframe>',
    '<a href="#" onclick="document.title=1">x</a>',
    "```\n</code></pre><script>document.title = 'owned'</script>\n```",
    "| a | b |\n|---|---|\n| <svg onload=alert(1)> | ok |",
    '<style>@import "http://127.0.0.1:1/x.css"</style>',
    "> " * 200 + "deep",
    "".join(f"{'  ' * depth}- item\n" for depth in range(60)),
    "*" * 3000 + "[" * 3000 + "`" * 3001,
    "&lt;script&gt;document.title = 'owned'&lt;/script&gt; [x](java&#115;cript:alert(1)) [x](javascript&colon;x)",
    "\n".join(["[x](" + "(" * 9000, "[x](" + " " * 9000 + "x", "https://" + "(a" * 9000, "[x](" * 900, "&" * 9000]),
    "a\n===\n" * 500 + "    <script>alert(1)</script>\n- [x] <b onclick=alert(1)>x</b>",
    *(letter * 50_000 for letter in ("# ", "|-", "~`", "> ", "1. ")),
]


def test_an_answer_by_a_schema_is_a_table(opened):  # noqa: F811
    opened.page.click("#open-form")
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["pink", "black"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    opened.page.fill("#form-schema", "{")
    opened.page.click("#form-use")
    assert "not a JSON Schema" in opened.page.inner_text("#form-error")
    opened.page.fill("#form-schema", json.dumps(schema))
    opened.page.click("#form-use")
    opened.ask("What shapes are there?", SCENE)
    rows = opened.page.locator(".result tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["colour", "count"]
    value = json.loads(opened.page.text_content(".answer details code"))
    assert rows == [f"colour\t{value['colour']}", f"count\t{value['count']}"]
    opened.page.click("#form-off")
    opened.ask(QUESTION)
    assert opened.page.locator(".answer:last-child .result").count() == 0


def test_boxes_of_an_answer_are_drawn_where_it_says(opened):  # noqa: F811
    opened.ask(BOXES, SCENE)
    found = json.loads(opened.page.text_content(".answer details code"))
    assert found and all(set(box) == {"image_id", "bbox_2d", "label"} for box in found)
    for rect, box in zip(opened.page.locator(".box-picture rect:not(.halo)").all(), found, strict=True):
        x1, y1, x2, y2 = box["bbox_2d"]
        drawn = [float(rect.get_attribute(name)) for name in ("x", "y", "width", "height")]
        assert drawn == [x1, y1, x2 - x1, y2 - y1]
    picture, overlay = (opened.page.locator(f".box-picture > {tag}").bounding_box() for tag in ("img", "svg"))
    assert picture == overlay
    assert opened.page.locator(".box-label").all_inner_texts() == [box["label"] for box in found]


def test_nothing_an_answer_says_can_run(opened):  # noqa: F811
    keep = """async (texts) => {
        const {newConversation, saveConversation} = await import("/static/store.js");
        const made = {...newConversation(), title: "<b>kept</b>"};
        for (const text of texts)
            for (const role of ["user", "assistant"]) made.messages.push({role, text, pictures: [], finish: "stop"});
        await saveConversation(made);
    }"""
    opened.page.evaluate(keep, HOSTILE)
    opened.page.reload()
    opened.page.click(".conversation")
    opened.page.wait_for_selector(".answer-body > *")
    assert opened.page.locator(".answer").count() == len(HOSTILE)
    shown = opened.page.evaluate(
        """() => [...document.querySelectorAll("#messages *")].map((each) =>
            [each.tagName.toLowerCase(), each.closest("a")?.protocol ?? "", [...each.attributes].map((a) => a.name)])"""
    )
    for tag, protocol, names in shown:
        assert tag not in ("script", "iframe", "img", "style", "object", "embed", "form", "base", "link", "meta")
        assert protocol in ("", "http:", "https:", "mailto:")
        assert not any(name.startswith("on") for name in names)
    assert opened.page.title() == "<b>kept</b> · mlx-lfm2vl"
    assert opened.page.locator(".conversation b").count() == 0
    assert not [url for url in opened.asked if "127.0.0.1:1/" in url]


def test_markdown_is_shown_as_what_it_is(opened):  # noqa: F811
    cases = {
        "# One\ntext": "<h3>One</h3><p>text</p>",
        "a **b** *c* `d` ~~e~~": "<p>a <strong>b</strong> <em>c</em> <code>d</code> <del>e</del></p>",
        "1. a\n2. b\n   - c\n3. d": '<ol start="1"><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ol>',
        "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
        "> a\n> b": "<blockquote><p>a<br>b</p></blockquote>",
        "|a|b|\n|-|-|\n|1|2|": '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>",
        "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
        "**not closed": "<p>**not closed</p>",
        "a < b & c": "<p>a &lt; b &amp; c</p>",
        "One\n===\nTwo\nlines\n---": "<h3>One</h3><h4>Two<br>lines</h4>",
        "&lt;b&gt; &amp;amp; &#233;&#x41; &nosuch; `&lt;`": "<p>&lt;b&gt; &amp;amp; éA &amp;nosuch; "
        "<code>&amp;lt;</code></p>",
        "- [x] a\n- [ ] b": '<ul><li class="task"><input type="checkbox" disabled="" checked="" '
        'aria-label="done">a</li>'
        '<li class="task"><input type="checkbox" disabled="" aria-label="to do">b</li></ul>',
        "|a|b|c|\n|:-|:-:|--:|\n|1|2|3|4|\n|1|": '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th>'
        '<th class="centre">b</th><th class="right">c</th></tr></thead><tbody><tr><td>1</td><td class="centre">2</td>'
        '<td class="right">3</td></tr><tr><td>1</td><td class="centre"></td><td class="right"></td></tr>'
        "</tbody></table></div>",
    }
    links = {
        "[a](https://x.org/b_(c)) d": ["https://x.org/b_(c)"],
        "[a](https://x.org/b_(c(d)) 'title')": ["https://x.org/b_(c(d))"],
        "[a](<https://x.org/b c>)": ["https://x.org/b%20c"],
        "[a [b]](https://x.org/?c=1&amp;d=2)": ["https://x.org/?c=1&d=2"],
        "(see https://x.org/b_(c)), https://y.org/.": ["https://x.org/b_(c)", "https://y.org/"],
        "[a](java&#115;cript:alert(1)) [b](javascript&colon;alert(1))": [],
    }
    render = """async (text) => {
        const {markdown} = await import("/static/markdown.js");
        const place = document.createElement("div");
        place.append(markdown(text));
        return place.innerHTML;
    }"""
    assert {text: opened.page.evaluate(render, text) for text in cases} == cases
    addresses = render.replace("place.innerHTML", "[...place.querySelectorAll('a')].map((each) => each.href)")
    assert {text: opened.page.evaluate(addresses, text) for text in links} == links
    code = render.replace("place.innerHTML", "[...place.querySelectorAll('pre')].map((each) => each.textContent)")
    assert opened.page.evaluate(code, "a\n    b\n\n    c\n\n      d\n\ne") == ["c\n\n  d"]


SHOW = """async (text) => {
    const {newConversation, saveConversation} = await import("/static/store.js");
    const message = (role, text) => ({role, text, pictures: [], finish: "stop"});
    const messages = [message("user", "?"), message("assistant", text)];
    await saveConversation({...newConversation(), title: "made", messages});
}"""


def show(page, text):
    """Opens a conversation whose answer is this text."""
    page.evaluate(SHOW, text)
    page.reload()
    page.click(".conversation:text-is('made')")
    page.wait_for_selector(".answer-body > *")


def test_lists_of_an_answer_have_bullets_by_their_depth(opened):  # noqa: F811
    show(opened.page, "- a\n  - b\n")
    marks = "[...document.querySelectorAll('.answer-body ul')].map((each) => getComputedStyle(each).listStyleType)"
    assert opened.page.evaluate(marks) == ["disc", "circle"]


def test_a_wide_table_scrolls_and_keeps_its_words_on_a_phone(browser, server):  # noqa: F811
    page = Page(browser, server.url)
    row = "|".join(["measurement"] * 9)
    show(page.page, f"|{row}|\n|{'|'.join(['-'] * 9)}|\n|{row}|")
    page.page.set_viewport_size({"width": 360, "height": 700})
    heights = "[...document.querySelectorAll('td')].map((each) => each.getClientRects()[0].height)"
    assert max(page.page.evaluate(heights)) < 50  # one line each
    assert page.page.evaluate("document.querySelector('.answer .scroll').scrollWidth") > 360
    assert page.page.evaluate("document.getElementById('scroll').scrollWidth") <= 360
    page.context.close()


def test_an_answer_by_a_schema_wraps_while_it_comes(opened):  # noqa: F811
    opened.page.select_option("#model", "model")
    opened.page.click("#open-form")
    opened.page.fill("#form-schema", json.dumps({"type": "array", "minItems": 900, "items": {"type": "integer"}}))
    opened.page.click("#form-use")
    opened.ask("Go on.", wait=False)
    until(lambda: opened.page.evaluate("document.querySelector('.answer pre')?.textContent.length > 300"))
    assert opened.page.evaluate(
        "(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)(document.querySelector('.answer pre'))"
    )
    opened.page.click("#stop")
