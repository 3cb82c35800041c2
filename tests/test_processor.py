"""Messages and pictures to arrays: the reference's ids, patches and masks, and clear errors for what does not fit."""

from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, case_ids
from PIL import Image

from mlx_lfm2vl.processing.processor import Lfm2VlProcessor

_LOADED: dict[str, Lfm2VlProcessor] = {}


def processor(name: str = "gen2") -> Lfm2VlProcessor:
    if name not in _LOADED:
        _LOADED[name] = Lfm2VlProcessor.from_pretrained(GOLDEN / name)
    return _LOADED[name]


def grey(width: int = 40, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def assert_is_reference(output: Any, case: Any) -> None:
    expected = case.inputs
    assert set(output) == set(expected)
    for name in expected:
        assert output[name].shape == expected[name].shape, name
        if name == "pixel_values":
            assert output[name].dtype == np.float32
            levels = np.rint(np.abs(output[name] - expected[name]) * 127.5)  # of 8 bits; see tools/golden/resize.py
            assert levels.max() <= 2
            assert (levels == 2).mean() < 2e-5
            assert (levels == 1).mean() < 0.02
        else:
            np.testing.assert_array_equal(output[name], expected[name], err_msg=name)


@pytest.mark.parametrize("case_id", case_ids())
def test_prompts_and_pictures_give_the_references_arrays(case_id, golden):
    case = golden(case_id)
    output = processor(case.checkpoint)(
        images=case.pictures if case.has_pictures else None, text=case.prompts, **case.call_options
    )
    assert_is_reference(output, case)


@pytest.mark.parametrize("case_id", case_ids())
def test_conversations_give_the_references_arrays(case_id, golden):
    case = golden(case_id)
    rendered = processor(case.checkpoint).apply_chat_template(case.conversations, add_generation_prompt=True)
    assert rendered == case.prompts
    output = processor(case.checkpoint).apply_chat_template(
        case.conversations, add_generation_prompt=True, tokenize=True, return_dict=True, **case.call_options
    )
    assert_is_reference(output, case)
