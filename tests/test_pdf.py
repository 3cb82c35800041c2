"""PDF documents wherever a picture may be named. What is drawn of a page, and what is refused: tests/matrix/pdfs.py."""

import io
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import Loaded, cache_by_backend
from hypothesis import given
from hypothesis import strategies as st
from pdfs import coloured, pdf
from PIL import Image
from test_cli import cli  # noqa: F401

from mlx_lfm2vl import Chat, Engine, GenerationOptions, SourcePolicy, generate, load
from mlx_lfm2vl.cli.chat_pictures import find_pictures
from mlx_lfm2vl.cli.inputs import expand
from mlx_lfm2vl.config import ImageProcessorConfig
from mlx_lfm2vl.errors import ImageError, PromptError
from mlx_lfm2vl.processing import pdf as pdf_reader
from mlx_lfm2vl.processing.fetch import DEFAULT_POLICY
from mlx_lfm2vl.processing.geometry import plan
from mlx_lfm2vl.processing.load_image import expand_pages, load_image
from mlx_lfm2vl.processing.pdf import PdfPage
from mlx_lfm2vl.threads import cancellation

QUESTION = "What is in this image?"
SHORT = GenerationOptions(max_tokens=8)
THREE = coloured("1 0 0", "0 1 0", "0 0 1", side=300)


@cache_by_backend
def loaded() -> Loaded:
    return load("demo")


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """The pages of THREE as the demo model sees them."""
    processor = load("demo")[1].image_processor
    pages = expand_pages(THREE, processor.source_policy)
    return [load_image(page, processor.source_policy, processor.config) for page in pages]


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(THREE)
    return path


@pytest.mark.backends("mlx", "numpy")
def test_a_document_is_answered_as_its_pages(drawn, document):
    model, processor = loaded()
    pages = generate(model, processor, QUESTION, drawn, options=SHORT)
    assert generate(model, processor, QUESTION, document, options=SHORT) == pages
    assert generate(model, processor, QUESTION, io.BytesIO(THREE), options=SHORT) == pages


def test_documents_in_messages_become_an_image_item_a_page(drawn, document):
    _, processor = loaded()
    text = {"type": "text", "text": QUESTION}

    def encoded(*items, **more):
        messages = [{"role": "user", "content": [*items, text]}]
        return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **more)

    pages = encoded(*({"type": "image", "image": page} for page in drawn[1:]))
    chosen = f"{document}[2-3]"
    for item in (
        {"type": "image", "path": chosen},
        {"type": "image_url", "image_url": {"url": f"file://{chosen}"}},
    ):
        made = encoded(item)
        assert made["input_ids"].tolist() == pages["input_ids"].tolist()
        np.testing.assert_array_equal(made["pixel_values"], pages["pixel_values"])
    beside = encoded({"type": "image"}, {"type": "image"}, images=[chosen, drawn[0]])
    three = encoded(*({"type": "image", "image": page} for page in (*drawn[1:], drawn[0])))
    assert beside["input_ids"].tolist() == three["input_ids"].tolist()
    np.testing.assert_array_equal(beside["pixel_values"], three["pixel_values"])


def test_a_text_needs_a_placeholder_a_page(drawn, document):
    _, processor = loaded()
    made = processor(images=[document], text="<image><image><image>")
    expected = processor(images=drawn, text="<image><image><image>")
    np.testing.assert_array_equal(made["pixel_values"], expected["pixel_values"])
    with pytest.raises(PromptError, match="1 <image> placeholder for 3 pictures"):
        processor(images=[document], text="<image>")


def test_pages_of_a_chat_and_of_an_engine_are_answered_alike(drawn, document):
    model, processor = loaded()
    expected = generate(model, processor, QUESTION, drawn[:2], options=SHORT)
    chat = Chat(model, processor, options=SHORT)
    assert chat.ask(QUESTION, f"{document}[1-2]") == expected
    pictures = [item["image"] for item in chat.messages[0]["content"] if item["type"] == "image"]
    assert [picture.tobytes() for picture in pictures] == [page.tobytes() for page in drawn[:2]]
    with Engine(lambda: (model, processor)) as engine:
        assert "".join(r.text for r in engine.submit(QUESTION, [f"{document}[1-2]"], options=SHORT)) == expected


def test_pages_are_drawn_by_several_threads_at_once(drawn):
    processor = loaded()[1].image_processor
    pages = expand_pages(THREE, processor.source_policy)

    def draw(number):
        return load_image(pages[number % 3], processor.source_policy, processor.config).tobytes()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(draw, range(6))) == [page.tobytes() for page in drawn] * 2


# Resolution


def test_what_the_caller_holds_is_not_counted_as_memory_of_the_reader(monkeypatch):
    monkeypatch.setattr("mlx_lfm2vl.processing.pdf.MAX_MEMORY", 128 * 2**20)
    held = b"a" * (160 * 2**20)
    assert len(expand_pages(THREE, DEFAULT_POLICY)) == 3
    assert held


def test_a_bad_document_is_read_once(monkeypatch):
    count = itertools.count()
    read = vars(pdf_reader)["_run"]
    monkeypatch.setattr(pdf_reader, "_run", lambda *given: (next(count), read(*given))[1])
    model, processor = loaded()
    with pytest.raises(ImageError, match="damaged"):
        generate(model, processor, QUESTION, b"%PDF-1.7 and no more", options=SHORT)
    assert next(count) == 1


def test_a_large_document_reaches_its_reader_however_long_that_takes(monkeypatch):
    monkeypatch.setattr(pdf_reader, "_LOOKS", 0.001)
    (found,) = expand_pages(pdf(["0 0 1 1 re f\n" * 200_000]), DEFAULT_POLICY)
    assert (found.width, found.height) == (72, 72)


def test_a_reader_ends_when_the_work_is_cancelled(monkeypatch, tmp_path):
    program, note = tmp_path / "slow.py", tmp_path / "pid"
    program.write_text(f"import os, time\nopen({str(note)!r}, 'w').write(f'{{os.getpid()}} ')\ntime.sleep(60)\n")
    monkeypatch.setattr(pdf_reader.pdf_process, "__file__", str(program))

    def check():
        if note.exists() and note.read_text().endswith(" "):
            raise KeyboardInterrupt

    with cancellation(check), pytest.raises(KeyboardInterrupt):
        expand_pages(THREE, DEFAULT_POLICY)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def page(width: float, height: float) -> PdfPage:
    return PdfPage(b"", "a.pdf[1]", 1, width, height)


SIDES = st.floats(14.4, 14400)  # points; PDF's limit is 14400
CONFIGS = st.sampled_from(
    [
        ImageProcessorConfig(),
        ImageProcessorConfig(max_tiles=4, tile_size=128, max_image_tokens=16, min_image_tokens=9),
        ImageProcessorConfig(do_image_splitting=False),
    ]
)


@given(SIDES, SIDES, CONFIGS, st.sampled_from([10_000, 150_000_000]))
def test_no_page_has_more_pixels_than_are_seen_or_allowed(width, height, config, most):
    wide, high = page(width, height).size(SourcePolicy(max_pixels=most), config)
    views = plan(high, wide, config)
    assert wide * high <= most
    assert wide <= width * 300 / 72 + 1 and high <= height * 300 / 72 + 1
    if min(wide, high) > 1 and views.tiled:
        assert wide * high <= config.max_tiles * config.tile_size**2
    elif min(wide, high) > 1:
        assert wide * high <= 2 * config.max_image_tokens * 32**2


FORMATS = {"A4": (595, 842), "A3": (842, 1191), "letter": (612, 792), "legal": (612, 1008), "slide": (720, 405)}


@pytest.mark.parametrize("config", [ImageProcessorConfig(), ImageProcessorConfig(do_image_splitting=False)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_page_gets_the_largest_view_of_its_shape(name, config):
    for width, height in (FORMATS[name], FORMATS[name][::-1]):
        wide, high = page(width, height).size(SourcePolicy(), config)
        assert plan(high, wide, config) == plan(16 * height, 16 * width, config)


def test_a4_is_drawn_at_128_dots_an_inch():
    assert page(595, 842).size(SourcePolicy(), ImageProcessorConfig()) == (1054, 1491)  # for 2 x 3 tiles of 512


def test_a_page_without_area_is_refused():
    with pytest.raises(ImageError, match=r"^a.pdf\[1\]: the page is missing or has no size"):
        page(0, 0).size(SourcePolicy(), ImageProcessorConfig())


# Command line


def test_generate_lists_each_page_with_its_tokens(cli, document):  # noqa: F811
    _, out, _ = cli("generate", "--model", "demo", "--image", f"{document}[2-]", "--json", "--max-tokens", 2)
    made = json.loads(out)
    assert [image["source"] for image in made["images"]] == [f"{document}[2]", f"{document}[3]"]
    assert sum(image["tokens"] for image in made["images"]) == made["image_tokens"]


def test_a_document_on_stdin_has_pages_too(cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(THREE)))
    _, out, _ = cli("generate", "--model", "demo", "--image", "-", "--json", "--max-tokens", 1)
    assert [image["source"] for image in json.loads(out)["images"]] == ["-[1]", "-[2]", "-[3]"]


def test_batch_asks_about_each_page_of_the_documents_in_a_folder(cli, tmp_path, document):  # noqa: F811
    folder, output = tmp_path / "folder", tmp_path / "out.jsonl"
    folder.mkdir()
    document.rename(folder / "a.pdf")
    (folder / "b.pdf").write_bytes(pdf([""])[:100])
    Image.new("RGB", (40, 40)).save(folder / "c.png")
    code, _, _ = cli("batch", folder, "--model", "demo", "--output", output, "--max-tokens", 1)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    names = [f"{folder}/a.pdf[1]", f"{folder}/a.pdf[2]", f"{folder}/a.pdf[3]", f"{folder}/b.pdf", f"{folder}/c.png"]
    assert [row["image"] for row in rows] == [row["id"] for row in rows] == names
    assert [row.get("error") for row in rows] == [
        *[None] * 3,
        f"{folder}/b.pdf: damaged (PDFium cannot open it); save or download it again",
        None,
    ]
    assert code == 1
    assert cli("batch", folder, "--model", "demo", "--output", output, "--max-tokens", 1, "--overwrite")[0] == 1


def test_a_row_of_batch_gets_all_pages_that_it_names(cli, tmp_path, document):  # noqa: F811
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"image": ["a.pdf[3]", "a.pdf"]}) + "\n" + json.dumps({"image": "a.pdf[3]"}) + "\n")
    assert cli("batch", rows, "--model", "demo", "--output", output, "--max-tokens", 1)[0] == 0
    four, one = (json.loads(line)["image_tokens"] for line in output.read_text().splitlines())
    assert four == 4 * one > 0


def test_brackets_choose_pages_and_stay_patterns_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pdf", "b.pdf", "1.png", "2.png", "[1].png"):
        (tmp_path / name).write_bytes(THREE)
    assert expand(["a.pdf[2-5]", "none.pdf[1]"]) == ["a.pdf[2-5]", "none.pdf[1]"]
    assert expand(["*.pdf[1,3]"]) == ["a.pdf[1,3]", "b.pdf[1,3]"]
    assert expand(["[12].png", "[1].png"]) == ["1.png", "2.png", "[1].png"]
    for name in ("scan", "scan1", "scan2"):
        (tmp_path / name).write_bytes(THREE)
    assert expand(["scan[12]", "scan[3]"]) == ["scan1", "scan2", "scan[3]"]


def test_a_document_that_is_dropped_on_a_chat_is_found_with_its_pages(document):
    found = find_pictures(f"{document}[2-3] What is this?")
    assert (found.names, found.rest) == ([f"{document}[2-3]"], "What is this?")
    assert find_pictures(f"Compare {document} and {document}[1]!").names == [str(document), f"{document}[1]"]
    with pytest.raises(ImageError, match=r"none.pdf\[1\]: no such picture"):
        find_pictures(f"{document.with_name('none.pdf')}[1]")
