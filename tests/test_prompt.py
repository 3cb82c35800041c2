"""Placeholders: which picture each gets, what it becomes, and where it ends up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.config import ImageProcessorConfig
from mlx_lfm2vl.errors import PromptError
from mlx_lfm2vl.processing.geometry import plan
from mlx_lfm2vl.processing.prompt import ImageMarkup, assign_pictures, expand, image_spans

CONFIG = ImageProcessorConfig(tile_size=64, min_image_tokens=1, max_image_tokens=4)
SINGLE = plan(32, 64, CONFIG)  # 2 tokens
TILED = plan(128, 192, CONFIG)  # 2x3 tiles of 4 tokens, a thumbnail of 2
BARE = plan(128, 192, CONFIG.with_overrides(use_thumbnail=False))


class TestMarkup:
    def test_one_view(self):
        assert ImageMarkup().expand(SINGLE) == "<|image_start|><image><image><|image_end|>"
        assert ImageMarkup(markers=False).expand(SINGLE) == "<image><image>"

    def test_tiles_row_by_row_and_the_thumbnail(self):
        tiles = "".join(f"<|img_row_{r}_col_{c}|>" + "<image>" * 4 for r in (1, 2) for c in (1, 2, 3))
        assert ImageMarkup().expand(TILED) == (f"<|image_start|>{tiles}<|img_thumbnail|><image><image><|image_end|>")
        assert ImageMarkup().expand(BARE) == f"<|image_start|>{tiles}<|image_end|>"
        assert ImageMarkup(markers=False).expand(TILED) == "<image>" * 26

    def test_tokens_under_other_names(self):
        markup = ImageMarkup(("[i]",), start="[s]", end="[e]", thumbnail="[t]")
        assert markup.expand(SINGLE) == "[s][i][i][e]"
        assert markup.expand(TILED).endswith("[t][i][i][e]")


class TestExpansion:
    def test_in_order(self):
        found = expand("a<image>b<image>", [SINGLE, TILED], ImageMarkup())
        assert found.text == f"a{ImageMarkup().expand(SINGLE)}b{ImageMarkup().expand(TILED)}"
        assert expand("no picture", [], ImageMarkup()).text == "no picture"

    @settings(max_examples=200, deadline=None)
    @given(parts=st.lists(st.text(alphabet="ab<image>é", max_size=8), min_size=1, max_size=5), markers=st.booleans())
    def test_text_around_pictures_keeps_its_place(self, parts, markers):
        text = "<image>".join(part.replace("<image>", "") for part in parts)
        plans = ([SINGLE, TILED] * 10)[: text.count("<image>")]
        found = expand(text, plans, ImageMarkup(markers=markers))
        assert found.text.count("<image>") == sum(plan.tokens for plan in plans)
        inside = [i for start in range(len(text)) if text.startswith("<image>", start) for i in range(start, start + 7)]
        for character in set(range(len(text))) - set(inside):
            assert found.text[found.position(character)] == text[character]
        assert found.position(len(text)) == len(found.text)


class TestAssignment:
    def test_flat_lists_are_dealt_out(self):
        assert assign_pictures(["<image>", "a", "<image><image>"], [1, 2, 3], "<image>") == [[1], [], [2, 3]]
        assert assign_pictures(["<image>"], 1, "<image>") == [[1]]
        assert assign_pictures(["a"], None, "<image>") == [[]]
        assert assign_pictures(["a"], [], "<image>") == [[]]

    def test_nested_lists_are_taken_as_they_are(self):
        assert assign_pictures(["<image><image>", "<image>"], [[1, 2], [3]], "<image>") == [[1, 2], [3]]
        assert assign_pictures(["a", "<image>"], [[], [3]], "<image>") == [[], [3]]

    @pytest.mark.parametrize(
        ("texts", "images", "match"),
        [
            (["<image> <image>"], [1], "2 <image> placeholders for 1 picture; one each"),
            (["<image>"], None, "1 <image> placeholder for 0 pictures"),
            (["hello"], [1], "0 <image> placeholders for 1 picture"),
            (["<image>", "<image>"], [[1, 2], []], r"\[1, 1\] <image> placeholders for \[2, 0\] pictures"),
            (["<image>", "<image>"], [1], r"\[1, 1\] <image> placeholders for \[1\] pictures"),
            (["<image>", "<image>"], [[1, 2]], r"\[1, 1\] <image> placeholders for \[2\] pictures"),
        ],
    )
    def test_both_counts_are_said(self, texts, images, match):
        with pytest.raises(PromptError, match=match):
            assign_pictures(texts, images, "<image>")


class TestSpans:
    def test_each_picture_with_its_markers(self):
        image, other = 396, 5
        single = [498, image, image, 499]
        tiled = [498, *([397, *[image] * 4] * 6), 497, image, image, 499]
        ids = [0, 0, other, *single, other, *tiled, *single, other]
        spans = image_spans(ids, [SINGLE, TILED, SINGLE], (image,), markers=True)
        assert [ids[start:end] for start, end in spans] == [single, tiled, single]

    def test_without_markers(self):
        ids = [5, *[396] * 28, 5]
        assert image_spans(ids, [SINGLE, TILED], (396,), markers=False) == ((1, 3), (3, 29))

    def test_pictures_that_were_cut_off(self):
        with pytest.raises(PromptError, match="5 image tokens where the pictures make 26"):
            image_spans([396] * 5, [TILED], (396,), markers=False)
