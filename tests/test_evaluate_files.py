"""Task files and the files of benchmarks: what is read, and what is refused whatever the bytes are."""

import base64
import csv
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_lfm2vl.errors import OptionError, PromptError
from mlx_lfm2vl.evaluation.benchmarks import FORMATS, LETTER, SHORT, read_task
from mlx_lfm2vl.evaluation.rows import read_rows, spread

SEPARATORS = "\x85\u2028\u2029"  # at which `str.splitlines` parts, and which JSON leaves as they are


def test_a_row_says_its_question_rule_and_group(tmp_path):
    file = jsonl(
        tmp_path,
        {"image": "a.png", "prompt": "Why?", "answers": ["So.", "Because."], "task": "reasons"},
        {"id": "n", "image": "a.png", "prompt": "How many?", "answer": 7, "scoring": "number"},
        {"images": ["a.png"], "prompt": "cats", "boxes": [[0, 1, 2, 3]]},
        {"image": "a.png", "json_schema": {"properties": {"n": {}}}, "answer": {"n": 1}},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    )
    rows = read_rows(file, "contains")
    assert [(row.id, row.text, row.scoring, row.accepted, row.group) for row in rows] == [
        (1, "Why?", "contains", ("So.", "Because."), "reasons"),
        ("n", "How many?", "number", ("7.0",), ""),
        (3, "cats", "boxes", ((0.0, 1.0, 2.0, 3.0),), ""),
        (4, "", "fields", {"n": 1}, ""),
        (5, "Hi", "contains", ("Ho",), ""),
    ]
    assert rows[0].pictures == [str(tmp_path / "a.png")] and rows[4].pictures == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ({"image": "a.png", "prompt": "Why?"}, 'has no accepted "answer"'),
        ({"image": "a.png", "prompt": "Why?", "answers": []}, 'has no accepted "answer"'),
        ({"prompt": "Why?", "answer": "a", "answers": ["b"]}, 'both "answer" and "answers"'),
        ({"prompt": "Why?", "answer": "a", "scoring": "exactly"}, "did you mean exact?"),
        ({"prompt": "Why?", "answer": "many", "scoring": "number"}, "one number an answer"),
        ({"prompt": "Why?", "answer": "a", "task": 3}, '"task" must be a string'),
        ({"question": "Why?", "answer": "a"}, '"question" is not read; call it "prompt"'),
        ({"img": "a.png", "prompt": "Why?", "answer": "a"}, '"img" names a picture'),
        ({"image": "a.png", "prompt": "cat", "boxes": [[3, 0, 1, 1]]}, "[left, top, right, bottom]"),
        ({"image": "a.png", "boxes": []}, 'names what to find as "prompt"'),
        ({"prompt": "cat", "boxes": []}, 'has "image"'),
        ({"image": "a.png", "json_schema": {}, "answer": "x"}, 'an object as "answer"'),
        ({"image": "a.png", "json_schema": ["a"], "answer": {"a": 1}}, 'a row of fields has a "json_schema"'),
        ({"image": "a.png", "json_schema": {"type": "array", "items": {}}, "answer": {"a": 1}}, "of an object, with"),
        ({"image": "a.png", "json_schema": {"properties": {"a": [1]}}, "answer": {"a": 1}}, "#/properties/a: is a"),
        ({"image": "a.png", "json_schema": {"properties": {"a": {"not": {}}}}, "answer": {"a": 1}}, "#/properties/a"),
        ({"prompt": "Why?", "answer": "a", "scoring": ["exact"]}, '"scoring" is ['),
        ({"prompt": "Why?", "answer": ["a", None]}, 'has no accepted "answer"'),
        ('{"more": ' + "[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, row, said):
    file = jsonl(tmp_path, {"prompt": "Hi", "answer": "Ho"}, row)
    with pytest.raises(PromptError, match=re.escape(said)) as error:
        read_rows(file)
    assert str(error.value).startswith(f"{file}, line 2: ")


def test_a_limit_takes_rows_from_all_over_the_file(tmp_path):
    rows = read_rows(jsonl(tmp_path, *({"prompt": str(n), "answer": "a"} for n in range(10))))
    assert [row.text for row in spread(rows, 3)] == ["0", "3", "6"]
    assert spread(rows, None) is rows and spread(rows, 99) is rows


def jpeg() -> str:
    made = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(made, "jpeg")
    return base64.b64encode(made.getvalue()).decode()


# An entry of each file as its makers publish it, and what it becomes: id, question, picture, rule, accepted, group.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "ocrbench": (
        "OCRBench.json",
        [
            {
                "dataset_name": "IIIT5K",
                "id": 0,
                "question": "what is written in the image?",
                "answers": ["CENTRE"],
                "type": "Regular Text Recognition",
                "image_path": "IIIT5K/1.png",
            },
            {
                "dataset_name": "HME100k",
                "id": 900,
                "question": "Please write out the expression of the formula in the image using LaTeX format.",
                "answers": "x ^ 2",
                "type": "Handwritten Mathematical Expression Recognition",
                "image_path": "HME100k/2.jpg",
            },
        ],
        (0, "what is written in the image?", "OCRBench_Images/IIIT5K/1.png", "contains", ("CENTRE",)),
        "Regular Text Recognition",
    ),
    "docvqa": (
        "val_v1.0_withQT.json",
        {
            "dataset_name": "SP-DocVQA",
            "dataset_split": "val",
            "data": [
                {
                    "questionId": 49153,
                    "question": "What is the date?",
                    "question_types": ["form"],
                    "image": "documents/pybv0228_81.png",
                    "docId": 14465,
                    "ucsf_document_id": "pybv0228",
                    "ucsf_document_page_no": "81",
                    "answers": ["0.28", "1/8/93"],
                    "data_split": "val",
                }
            ],
        },
        (49153, f"What is the date?{SHORT}", "documents/pybv0228_81.png", "anls", ("0.28", "1/8/93")),
        "",
    ),
    "textvqa": (
        "TextVQA_0.5.1_val.json",
        {
            "dataset_type": "val",
            "data": [
                {
                    "question": "what is the brand of this camera?",
                    "image_id": "003a8ae2ef43b901",
                    "image_classes": ["Camera"],
                    "question_id": 34602,
                    "answers": ["dakota"] * 10,
                    "flickr_300k_url": "https://c5.staticflickr.com/6/5021/a.jpg",
                }
            ],
        },
        (
            34602,
            f"what is the brand of this camera?{SHORT}",
            "train_images/003a8ae2ef43b901.jpg",
            "vqa",
            ("dakota",) * 10,
        ),
        "",
    ),
    "refcoco": (
        "refcoco_testA.jsonl",
        [
            {
                "image": "data/coco/train2014/COCO_train2014_000000581857.jpg",
                "sent": "the lady with the blue shirt",
                "bbox": [103.93, 299.99, 342.15, 476.12],
                "height": 640,
                "width": 480,
            }
        ],
        (
            1,
            "the lady with the blue shirt",
            "COCO_train2014_000000581857.jpg",
            "box",
            ((103.93, 299.99, 342.15, 476.12),),
        ),
        "",
    ),
    "screenspot": (
        "screenspot_web.json",
        [
            {
                "img_filename": "web_3b0ad239.png",
                "bbox": [42, 1102, 197, 70],
                "instruction": "view the details of the item",
                "data_type": "text",
                "data_source": "shop",
            }
        ],
        (
            1,
            "view the details of the item",
            "screenspot_imgs/web_3b0ad239.png",
            "point",
            ((42.0, 1102.0, 239.0, 1172.0),),
        ),
        "text",
    ),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("form", PUBLISHED)
def test_the_files_of_a_benchmark_are_read(tmp_path, form, mark):
    name, content, wanted, group = PUBLISHED[form]
    file = tmp_path / name
    text = "\n".join(map(json.dumps, content)) if file.suffix == ".jsonl" else json.dumps(content)
    file.write_bytes(mark + text.encode())
    (tmp_path / Path(wanted[2]).parent).mkdir(parents=True, exist_ok=True)
    rows = read_task(file, form)
    one = rows[0]
    assert one.where == f"{file}, {'line' if file.suffix == '.jsonl' else 'entry'} 1"
    found = (one.id, one.text, str(Path(one.pictures[0]).relative_to(tmp_path)), one.scoring, one.accepted)
    assert found == wanted and one.group == group
    if form == "ocrbench":
        assert rows[1].scoring == "formula" and rows[1].accepted == ("x ^ 2",)
    (tmp_path / "pictures").mkdir()
    elsewhere = read_task(file, form, tmp_path / "pictures")[0]
    assert Path(elsewhere.pictures[0]).is_relative_to(tmp_path / "pictures")


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_the_table_of_mmstar_is_read_with_its_pictures(tmp_path, mark):
    file = tmp_path / "MMStar.tsv"
    question = '"Which option describes the object?\nOptions: A: a cat, B: a ""dog"""'
    file.write_text(
        f"{mark}index\tquestion\timage\tanswer\tcategory\tl2_category\tbench\n"
        f"7\t{question}\t{jpeg()}\tB\tcoarse perception\timage scene and topic\tMMBench\n"
    )
    (row,) = read_task(file, "mmstar")
    assert row.id == 7 and row.text == f'Which option describes the object?\nOptions: A: a cat, B: a "dog"{LETTER}'
    assert (row.scoring, row.accepted, row.group) == ("choice", ("B",), "coarse perception")
    assert row.pictures == [f"data:image/jpeg;base64,{jpeg()}"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_another_format_is_refused(tmp_path, form):
    file, place = tmp_path / "a.json", {"textvqa": "train_images", "ocrbench": "OCRBench_Images"}
    (tmp_path / place.get(form, "screenspot_imgs")).mkdir()
    file.write_text('[{"some": "thing"}]')
    with pytest.raises(PromptError, match=f"entry 1: is none of {form}"):
        read_task(file, form)
    for text in ('{"some": ', '{"some": "thing"}', "3", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(OptionError, match="none of this format"):
            read_task(file, form)
    with pytest.raises(OptionError, match="leave scoring out"):
        read_task(file, form, scoring="exact")
    with pytest.raises(OptionError, match="nowhere: no such folder of pictures"):
        read_task(file, form, tmp_path / "nowhere")


@pytest.mark.parametrize("cells", ["7\tWhy?\tAAAA", "7\tWhy?\tAAAA\tB\tperception\tmore", "7\tWhy?\tAAAA\tB"])
def test_a_row_of_a_table_has_the_cells_of_its_head(tmp_path, cells):
    file = tmp_path / "MMStar.tsv"
    file.write_text(f"index\tquestion\timage\tanswer\tcategory\n{cells}\n")
    with pytest.raises(PromptError, match=r"entry 1: is none of mmstar .its cells are not those"):
        read_task(file, "mmstar")


def test_a_table_leaves_the_limit_of_csv_as_it_was(tmp_path):
    file, limit = tmp_path / "MMStar.tsv", csv.field_size_limit()
    head = "index\tquestion\timage\tanswer\tcategory\n"
    file.write_text(f"{head}1\tWhy?\t{'A' * (limit + 4)}\tB\tperception\n")
    assert len(read_task(file, "mmstar")) == 1 and csv.field_size_limit() == limit


# How the files name pictures, by the folder and name that is meant, or None for one that is refused.
NAMES = {
    "a.png": "a.png",
    "./a/./b.png": "a/b.png",
    "a\\b.png": "a/b.png",
    ".\\a\\b c.png": "a/b c.png",
    "~/a.png": "~/a.png",
    **dict.fromkeys(["/etc/a.png", "../a.png", "a/../../b.png", "..\\a.png", "C:\\a.png", "C:a.png", "\\a.png"]),
    **dict.fromkeys(["", ".", "..", "\\\\server\\share\\a.png", "//server/share/a.png"]),
}
NAMED = {"ocrbench": "image_path", "docvqa": "image", "screenspot": "img_filename"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", NAMED)
def test_a_picture_of_a_benchmark_is_in_its_folder(tmp_path, monkeypatch, form, name):
    _, content, *_ = PUBLISHED[form]
    (entry, *_) = content["data"] if isinstance(content, dict) else content
    (tmp_path / "a.json").write_text(json.dumps([{**entry, NAMED[form]: name}]))
    monkeypatch.chdir(tmp_path)  # beside the pictures, where a name stands alone
    wanted = NAMES[name]
    if wanted is None:
        with pytest.raises(PromptError, match=r"^a.json, entry 1: .* is not in the folder of pictures"):
            read_task(Path("a.json"), form, Path())
    else:
        assert read_task(Path("a.json"), form, Path())[0].pictures == [str(tmp_path / wanted)]


def test_a_path_of_refcoco_is_looked_up_by_its_name(tmp_path):
    _, (entry, *_), *_ = PUBLISHED["refcoco"]
    for name in ("C:\\data\\coco\\a.jpg", "/data/coco/a.jpg", "a.jpg"):
        file = jsonl(tmp_path, {**entry, "image": name})
        assert read_task(file, "refcoco")[0].pictures == [str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("answers", [None, [], [None], ["a", None], "", [" "], [True], [{"a": 1}], [["a"]]])
@pytest.mark.parametrize("form", ["ocrbench", "docvqa", "textvqa"])
def test_an_answer_that_is_no_text_is_refused(tmp_path, form, answers):
    _, content, *_ = PUBLISHED[form]
    (entry, *_) = content["data"] if isinstance(content, dict) else content
    (tmp_path / "a.json").write_text(json.dumps([{**entry, "answers": answers}]))
    with pytest.raises(PromptError, match=r'entry 1: is none of .* .has no accepted "answer"'):
        read_task(tmp_path / "a.json", form, tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def contents(draw) -> bytes:
    """The bytes of a file: an entry of a benchmark or a row with other values in it, as JSON, JSON lines or a table;
    some bytes of it changed; or any bytes at all."""
    entries = [
        each
        for _, content, *_ in PUBLISHED.values()
        for each in (content if isinstance(content, list) else content["data"])
    ]
    entry = dict(draw(st.sampled_from([*entries, *(row for row in TASKS)])))
    for name in draw(st.lists(st.sampled_from(sorted(entry)), max_size=2)):
        entry[name] = draw(values)
    text = draw(
        st.sampled_from(
            [
                json.dumps([entry]),
                json.dumps({"data": [entry]}),
                f"{json.dumps(entry)}\n\n{json.dumps(entry)}",
                "\t".join(entry) + "\n" + "\t".join(map(str, entry.values())),
            ]
        )
    )
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"])) + text.encode()
    at = draw(st.integers(0, len(data)))
    changed = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return draw(st.sampled_from([data, changed, data[:at], draw(st.binary(max_size=200))]))


TASKS = (
    {"image": "a.png", "prompt": "How many?", "answer": 7, "scoring": "number", "task": "count", "id": 1},
    {"images": ["a.png"], "prompt": "cats", "boxes": [[0, 1, 2, 3]]},
    {"image": "a.png", "json_schema": {"properties": {"n": {"type": "integer"}}}, "answer": {"n": 1}},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "answers": ["Ho"]},
    {"index": "1", "question": "Why?", "image": "AAAA", "answer": "B", "category": "perception"},
)


@settings(max_examples=60)
@given(contents(), st.sampled_from([".json", ".jsonl", ".tsv", ".csv"]), st.sampled_from([None, *FORMATS]))
def test_any_bytes_are_rows_or_one_line_that_names_the_file(data, suffix, form):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"task{suffix}"
        file.write_bytes(data)
        try:
            rows = read_task(file, form, None if form is None else Path(folder))
        except (OptionError, PromptError) as error:
            assert str(error).startswith(str(file)) and len(str(error).splitlines()) == 1
            return
    for row in rows:
        assert row.where.startswith(f"{file}, ") and row.id is not None and row.text is not None
        accepted = row.accepted if isinstance(row.accepted, tuple) else ()
        assert all(isinstance(each, (str, tuple)) for each in accepted)
        inside = (Path(picture).is_relative_to(folder) or picture.startswith("data:") for picture in row.pictures)
        assert form is None or all(inside)


def test_a_box_without_four_edges_is_refused(tmp_path):
    for form in ("refcoco", "screenspot"):
        _, (entry, *_), *_ = PUBLISHED[form]
        file = tmp_path / "a.json"
        file.write_text(json.dumps([{**entry, "bbox": [1, 2, 3]}]))
        with pytest.raises(PromptError, match=f"entry 1: is none of {form}"):
            read_task(file, form, tmp_path)


def test_only_a_line_feed_ends_a_line_of_a_benchmark(tmp_path):
    name, (entry, *_), *_ = PUBLISHED["refcoco"]
    entries = [{**entry, "sent": f"the lady{mark}with the shirt"} for mark in SEPARATORS]
    (tmp_path / name).write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in entries))
    assert [row.text for row in read_task(tmp_path / name, "refcoco")] == [each["sent"] for each in entries]
