"""Rows of `batch`: a bad one is its own error in the output, at its place, and stops no other."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from containers import NOISE, encoded
from PIL import Image

from .bench import MODEL, Bench
from .row import Gives, Row

PNG = encoded(Image.fromarray(NOISE), "PNG")
GOOD = b'{"prompt": "Hi"}'


def answers(*lines: bytes, errors: list[str]) -> Callable[[Bench], Any]:
    """What the rows, between two good ones, have for an error, as far as `errors` go ("" where they were answered)."""

    def act(bench: Bench) -> Any:
        bench.write("a.png", PNG)
        bench.write("broken.png", PNG[:-60])
        bench.write("folder/b.txt", "no picture")
        bench.write("rows.jsonl", b"\n".join([GOOD, *lines, GOOD, b""]))
        ended = bench.cli("batch", "rows.jsonl", "--output", "o.jsonl", "--model", MODEL, "--max-tokens", 1)
        assert ended.out == "" and "Traceback" not in ended.err
        made = [json.loads(line, parse_constant=_none) for line in (bench.folder / "o.jsonl").read_bytes().splitlines()]
        assert "text" in made[0] and "text" in made[-1]
        found = [row.get("error", "").replace(f"{bench.folder}/", "") for row in made[1:-1]]
        return ended.code, [text[: len(error) or None] for text, error in zip(found, errors, strict=True)]

    return act


def _none(name: str) -> None:
    raise AssertionError(f"{name} in the output is no JSON")


def row(name: str, line: bytes | dict[str, Any], error: str) -> Row:
    """Of a row whose error begins so ("" where it is answered)."""
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return Row(name, answers(data, errors=[error]), Gives((int(bool(error)), [error])))


STRINGS = 'line 2: "prompt" and "system" must be strings'
SOURCES = 'line 2: "image" must be a path, a URL, a data URI or a list of them'
EMPTY = 'line 2: "image" is empty; leave it out, or name a picture'
NOTHING = "prompt is empty and there is no picture; give one of them"
FOUR = ["line 2: is not JSON (", "", "no.png: no such picture", "line 5: is not an object"]
ROWS = [
    row("a picture", {"image": "a.png"}, ""),
    row("a picture and a prompt", {"image": ["a.png", "a.png"], "prompt": "Which?"}, ""),
    row("a field of the same name twice", b'{"prompt": "a", "prompt": "b"}', ""),
    row("a byte order mark", b'\xef\xbb\xbf{"prompt": "a"}', ""),
    row("ten thousand brackets", b"[" * 10_000, "line 2: is nested too deeply"),
    row(
        "ten thousand brackets in a field", b'{"prompt": "a", "more": ' + b"[" * 10_000, "line 2: is nested too deeply"
    ),
    row("no JSON", b"hello", "line 2: is not JSON (Expecting value, column 1)"),
    row("half a row", b'{"prompt": "a', "line 2: is not JSON ("),
    row("no UTF-8", b'{"prompt": "\xff"}', "line 2: is not JSON ('utf-8' codec can't decode byte 0xff in position 12"),
    row(
        "a number that JSON does not have",
        b'{"prompt": "a", "n": NaN}',
        "line 2: is not JSON (NaN is no number of JSON)",
    ),
    row(
        "an infinite number", b'{"prompt": "a", "n": -Infinity}', "line 2: is not JSON (-Infinity is no number of JSON)"
    ),
    row(
        "a number of 5000 digits",
        b'{"n": 1' + b"0" * 5000 + b"}",
        "line 2: is not JSON (Exceeds the limit (4300 digits)",
    ),
    row("half a character", b'{"prompt": "\\ud800"}', "the text holds half a character (U+D800), which is no Unicode"),
    row("a list", b"[1]", "line 2: is not an object"),
    row("null", b"null", "line 2: is not an object"),
    row("nothing asked", {}, NOTHING),
    row("an empty prompt", {"prompt": ""}, NOTHING),
    row("no pictures in a list", {"image": []}, EMPTY),
    row("no pictures in a list, and a prompt", {"image": [], "prompt": "a"}, EMPTY),
    row("null for a picture", {"image": None, "prompt": "a"}, EMPTY),
    row("null among pictures", {"image": ["a.png", None], "prompt": "a"}, SOURCES),
    *(
        row(f"a picture as {key}", {key: "no.png", "prompt": "a"}, "no.png: no such picture")
        for key in ("images", "Image", "IMAGE", "image_url", "image_path", "imagePath", "image-file", "image_paths")
    ),
    *(
        row(
            f"a picture as {key}",
            {key: "a.png", "prompt": "a"},
            f'line 2: "{key}" names a picture and is not read; call it "image"',
        )
        for key in ("imgae", "iamge", "img", "picture", "pictures", "photo", "input_image", "attachments", "image_b64")
    ),
    *(
        row(
            f"a picture's name as {key}",
            {key: value, "prompt": "a"},
            f'line 2: "{key}" names a picture and is not read; call it "image"',
        )
        for key, value in (
            ("file_name", "my scan.png"),
            ("path", "a.png"),
            ("files", ["a.png", "b.png"]),
            ("media", {"url": "https://example.org/a.webp?size=2"}),
            ("source", "data:image/png;base64,AAAA"),
            ("scan", "a.HEIC"),
            ("input", "scans/page 1.tif"),
        )
    ),
    row("an id and a text that end as names do", {"id": "a.png", "prompt": "a", "note": "like b.png"}, ""),
    *(
        row(f"a prompt as {key}", {"image": "a.png", key: "a"}, f'line 2: "{key}" is not read; call it "prompt"')
        for key in ("promt", "Prompt", "prompts", "pormpt", "promp")
    ),
    *(
        row(f"a system prompt as {key}", {"prompt": "a", key: "b"}, f'line 2: "{key}" is not read; call it "system"')
        for key in ("sytem", "System", "system_prompt", "systemPrompt")
    ),
    row("what tells of prompts", {"prompt": "a", "prompts": 7, "image": "a.png", "prompt_id": "x", "promt": "b"}, ""),
    row("other fields", {"image": "a.png", "prompt_id": "x", "systematic": 1, "note": "y", "profit": 3}, ""),
    row("what tells of pictures", {"prompt": "a", "image_id": "x", "image_width": 7, "picture": "", "photos": []}, ""),
    row("words beside a picture", {"image": "a.png", "prompt": "a", "image_source": "mine", "image_name": "mine"}, ""),
    row(
        "a picture's own name beside it",
        {"image": "sub/a.png", "prompt": "a", "path": "data/a.png", "file_name": "b.png", "url": "https://a.org/7"},
        "sub/a.png: no such picture",
    ),
    *(
        row(
            f"another picture as {key}",
            {"image": "a.png", key: value, "prompt": "a"},
            f'line 2: "{key}" names a picture and is not read; put all pictures into one list',
        )
        for key, value in (
            ("photo", "other.png"),
            ("image2", "https://example.org/7"),
            ("image_2", "my scan.png"),
            ("mask", "a_mask.png"),
            ("src", "https://example.org/b.jpg"),
            ("pairs", [{"url": "b.png"}]),
        )
    ),
    *(
        row(
            f"an address as {key}",
            {key: "https://example.org/7", "prompt": "a"},
            f'line 2: "{key}" names a picture and is not read; call it "image"',
        )
        for key in ("url", "src", "file_uri")
    ),
    *(
        row(f"a question as {key}", {"image": "a.png", key: "Why?"}, f'line 2: "{key}" is not read; call it "prompt"')
        for key in ("question", "Instruction", "query", "input", "user-prompt")
    ),
    row(
        "a question as text",
        {"image": "a.png", "text": "b"},
        "line 2: the field 'text' is the answer's; call it \"prompt\"",
    ),
    row("a question without a picture", {"question": "Why?"}, 'line 2: "question" is not read; call it "prompt"'),
    row("a question beside the prompt", {"image": "a.png", "prompt": "a", "question": "Why?"}, ""),
    row("a file: address", {"image": "file:///no.png"}, "/no.png: no such picture"),
    row("base64 without an address", {"image": base64.b64encode(PNG).decode()}, ""),
    row("messages", {"messages": [{"role": "user"}]}, 'line 2: "messages" is not read; give "prompt" and "image"'),
    row("a prompt that is a number", {"prompt": 7}, STRINGS),
    row("a system prompt that is a list", {"prompt": "a", "system": []}, STRINGS),
    row("a picture that is a number", {"image": 7}, SOURCES),
    row("a picture that is an object", {"image": {"url": "a.png"}}, SOURCES),
    row(
        "both names for pictures",
        {"image": "a.png", "images": ["a.png"]},
        'line 2: has both "image" and "images"; give one of them',
    ),
    row(
        "a field that is the answer's",
        {"prompt": "a", "text": "b"},
        "line 2: the field 'text' is the answer's; call it otherwise",
    ),
    row("an empty name", {"image": ""}, 'line 2: "image" is empty; leave it out, or name a picture'),
    row("a name with a zero byte", {"image": "\0"}, "\\x00: cannot be opened (embedded null byte)"),
    row(
        "the home of nobody known",
        {"image": "~no-such-user/a.png"},
        "~no-such-user/a.png: cannot be opened (Could not determine home",
    ),
    row("a picture that is not there", {"image": "no.png"}, "no.png: no such picture"),
    row("a folder", {"image": "folder"}, "folder: is a directory, not a picture; name a file in it"),
    row("a device", {"image": "/dev/zero"}, "/dev/zero: is not a regular file but a device or pipe; give a file, or"),
    row("a damaged picture", {"image": "broken.png"}, "broken.png: damaged or truncated ("),
    row(
        "a private address",
        {"image": "http://127.0.0.1:9/a.png"},
        "http://127.0.0.1:9/a.png: 127.0.0.1 is a private address, which is not fetched",
    ),
    row(
        "another scheme",
        {"image": "ftp://example.com/a.png"},
        "ftp://example.com/a.png: only http, https, file and data addresses and paths can be read",
    ),
    row(
        "a data: URI that is none",
        {"image": "data:image/png;base64,!!"},
        "data:image/png;base64,!!: is not base64; encode the bytes of a picture",
    ),
    Row(
        "three bad rows and a good one",
        answers(b"[", GOOD, b'{"image": "no.png"}', b"7", errors=FOUR),
        Gives((1, FOUR)),
    ),
]
