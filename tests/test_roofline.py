"""The tables by calculation in docs/performance.md are what `tools.roofline` prints, of the published shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_lfm2vl.models.families import NETWORKS
from mlx_lfm2vl.weights.quantize import parameter_count
from tools import roofline

PAGE = (Path(__file__).parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_page_shows_what_the_program_prints():
    assert PAGE.split("<!-- roofline -->\n")[1].split("<!-- end -->")[0].strip() == roofline.tables().strip()


@pytest.mark.parametrize(("name", "published"), [("450M", 448_718_848), ("1.6B", 1_596_625_904), ("3B", 3_123_483_888)])
def test_the_shapes_are_those_of_the_published_checkpoints(name, published):
    """As many numbers."""
    config = roofline.CHECKPOINTS[name]
    model = NETWORKS[type(config)](config)
    assert parameter_count(model) == published
    assert roofline.weight_bytes(model, 16) == 2 * published
