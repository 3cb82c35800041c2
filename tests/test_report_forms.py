"""How reports look: tables in 80 columns, plots with whole layers and free labels."""

from pathlib import Path
from typing import Any

import pytest

from mlx_lfm2vl.conversion import plot
from mlx_lfm2vl.conversion.plan import Plan
from mlx_lfm2vl.conversion.report import COLUMNS, ModuleError, QuantizationReport
from mlx_lfm2vl.conversion.search import Point, SearchResult
from mlx_lfm2vl.weights.quantize import Quantization

LONGEST = "vision_tower.encoder.layers.26.self_attn.out_proj"


def report(layers: int = 3, worst: str = "lm_head") -> QuantizationReport:
    names = [f"language_model.model.layers.{n}.feed_forward.w1" for n in range(layers)]
    modules = [ModuleError(name, 4, "affine", 0.08) for name in (*names, "model.embed_tokens")]
    return QuantizationReport(
        calibration="a folder of photographs and documents that somebody has named at length",
        questions=8,
        positions=517,
        top1_agreement=0.95,
        kl_mean=0.04,
        kl_p99=0.3,
        perplexity_dense=1.4,
        perplexity=1.5,
        identical_32=0.5,
        identical_64=0.5,
        bytes_dense=6_200_000_000,
        bytes=1_740_000_000,
        bits_per_weight=4.52,
        modules=(*modules, ModuleError(worst, 4, "affine", 0.1036)),
        dtype="float32",
    )


def test_the_table_of_a_report_fits_80_columns_and_breaks_no_name():
    shown = report(worst=LONGEST)
    lines = shown.table().splitlines()
    assert max(map(len, lines)) <= COLUMNS == 80
    assert any(f"({LONGEST})" in line for line in lines)
    joined = " ".join(" ".join(lines).split())
    for label, value in shown.rows():
        assert f"{label} {value}" in joined


@pytest.fixture
def drawn(monkeypatch) -> list[Any]:
    """The figures that would be written."""
    figure = pytest.importorskip("matplotlib.figure")
    seen: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: seen.append(self))
    return seen


@pytest.mark.parametrize("layers", [1, 2, 3, 16])
def test_the_axis_of_layers_has_whole_numbers_and_all_errors(layers, drawn):
    plot.plot_errors(report(layers), Path("x.png"))
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == int(tick) for tick in ticks)
    assert low < 0 and layers - 1 < high < layers
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 10.36
    assert not axes.texts, "names stand in the legend, and not on lines"
    assert {"lm_head", "embed_tokens", "feed_forward.w1"} <= {text.get_text() for text in axes.get_legend().texts}


def test_the_labels_of_the_curve_stand_beside_its_points_and_inside(drawn):
    curve = [Point(f"{bits} bits", bits * 10**8, 10.0**-bits) for bits in (3, 4, 5, 6, 8)]
    found = [Point("search", point.size, point.kl / 3) for point in curve]
    plan = Plan(Quantization(4, 64), {})
    plot.plot_search(SearchResult(plan, found[1], (*curve, *found), {}), Path("x.png"))
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    frame = axes.get_window_extent()
    for label, point in zip(axes.texts, curve, strict=True):
        box = label.get_window_extent()
        x, y = axes.transData.transform((point.size / 1e9, point.kl))
        assert box.x0 > x and box.y0 > y, "clear of its point"
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
