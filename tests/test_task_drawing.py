"""Drawings of boxes: legible by measure on any picture, at their places, without covering each other's labels."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from mlx_lfm2vl import AnswerWarning, Box, ImageError, OptionError, Point, Region, draw_boxes, draw_points, to_coco
from mlx_lfm2vl.tasks.drawing import COLOURS, contrast
from mlx_lfm2vl.tasks.export import plain, to_rows
from mlx_lfm2vl.tasks.labels import place_labels

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8))
PLAIN = [Image.new("RGB", (700, 500), colour) for colour in ("black", "white", "#808080", *COLOURS)]


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Relative luminance of WCAG 2.2, of (..., 3) uint8."""
    parts = pixels / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    low, high = np.minimum(one, other), np.maximum(one, other)
    return (high + 0.05) / (low + 0.05)


def test_letters_contrast_with_their_plate():
    assert min(max(contrast(colour, ink) for ink in ("#000000", "#ffffff")) for colour in COLOURS) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("picture", PLAIN, ids=lambda picture: str(picture.getpixel((0, 0))))
def test_an_outline_is_seen_on_every_ground(picture):
    """Somewhere across each edge the lines differ from the ground by 3 : 1 and more, what WCAG asks of graphics."""
    drawn = np.asarray(draw_boxes(picture, [Box("thing", 200, 150, 500, 350)]))
    ground = luminance(np.asarray(picture)[:1, :1])
    across = [drawn[250, 190:215], drawn[250, 485:510], drawn[140:165, 350], drawn[335:360, 350]]
    assert all(ratio(luminance(line), ground).max() >= 3 for line in across)


@pytest.mark.parametrize("picture", [*PLAIN[:3], NOISE], ids=["black", "white", "grey", "noise"])
def test_a_label_is_seen_on_every_ground(picture):
    drawn = np.asarray(draw_boxes(picture, [Box("thing", 200, 150, 500, 350)]))
    plate = drawn[134:148, 204:232]
    lights = np.sort(luminance(plate).ravel())
    assert ratio(lights[2], lights[-2]) >= 4.5  # letters and plate
    other = np.asarray(draw_boxes(PLAIN[3], [Box("thing", 200, 150, 500, 350)]))
    assert np.array_equal(plate, other[134:148, 204:232])  # and nothing of the picture


def test_boxes_are_drawn_at_their_places_and_nowhere_else():
    box = Box("", 200, 150, 500, 350)
    picture = PLAIN[2]
    changed = (np.asarray(draw_boxes(picture, [box])) != np.asarray(picture)).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == pytest.approx(box.edges, abs=2)
    assert not changed[160:340, 210:490].any()


def test_the_picture_itself_is_not_changed():
    picture = Image.new("RGB", (700, 500))
    before = picture.tobytes()
    assert draw_boxes(picture, [Box("a", 1, 1, 50, 50)]) is not picture and picture.tobytes() == before


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    small = Image.new("RGB", (100, 30))
    assert draw_boxes(small, []).size == (700, 210)
    assert draw_boxes(small, [], scale=2).size == (200, 60)
    assert draw_boxes(small, [Box("a name", 10, 5, 90, 25)], scale=1).size == (100, 30)
    assert draw_boxes(NOISE, []).size == NOISE.size
    drawn = np.asarray(draw_boxes(small, [Box("", 10, 5, 90, 25)]))
    rows, columns = (np.flatnonzero(drawn.any((axis, 2))) for axis in (1, 0))
    assert (columns[0], rows[0], columns[-1], rows[-1]) == pytest.approx((70, 35, 630, 175), abs=2)


def test_labels_of_one_text_have_one_colour():
    boxes = [Box(label, 100 * n + 20, 50, 100 * n + 90, 120) for n, label in enumerate("aba")]
    drawn = draw_boxes(PLAIN[0], boxes)
    first, second, third = (drawn.getpixel((100 * n + 21, 85)) for n in range(3))
    assert first == third != second


@given(
    st.lists(
        st.tuples(st.text(max_size=60), *[st.floats(0, 1, width=32)] * 4).filter(lambda b: b[1] < b[3] and b[2] < b[4]),
        max_size=6,
    ),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.sampled_from([None, 1, 3]),
)
@settings(max_examples=30, deadline=None)
@pytest.mark.filterwarnings("ignore::mlx_lfm2vl.AnswerWarning")  # for scripts without a font here
def test_any_labels_and_boxes_can_be_drawn(told, size, scale):
    width, height = size
    boxes = [Box(label, a * width, b * height, c * width, d * height) for label, a, b, c, d in told]
    picture = Image.new("RGB", size)
    points = [Point(box.label, *box.center) for box in boxes]
    assert draw_boxes(picture, boxes, scale=scale).size == draw_points(picture, points, scale=scale).size


rectangles = st.tuples(st.integers(0, 700), st.integers(0, 500), st.integers(10, 300), st.integers(10, 300))
boxes_in_a_picture = st.lists(rectangles.map(lambda r: (r[0], r[1], min(800, r[0] + r[2]), min(600, r[1] + r[3]))))
plates = st.lists(st.tuples(st.integers(10, 120), st.just(20)), min_size=12, max_size=12)


def common(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(one[1], other[1])


@given(st.lists(boxes_in_a_picture.filter(bool).map(lambda boxes: boxes[0]), max_size=12), plates)
@settings(max_examples=80, deadline=None)
def test_labels_stay_in_the_picture_and_off_each_other(boxes, sizes):
    """Twelve labels always find room on a picture of 800x600."""
    placed = place_labels((800, 600), boxes, sizes[: len(boxes)])
    for number, (place, plate) in enumerate(zip(placed, sizes, strict=False)):
        assert (place[2] - place[0], place[3] - place[1]) == plate
        assert place[0] >= 0 and place[1] >= 0 and place[2] <= 800 and place[3] <= 600
        assert not any(common(place, other) for other in placed[:number])


def test_a_label_stands_on_its_box_where_nothing_is_in_the_way():
    assert place_labels((800, 600), [(100, 100, 300, 200)], [(50, 20)]) == [(100, 80, 150, 100)]
    assert place_labels((800, 600), [(100, 0, 300, 200)], [(50, 20)])[0][1] in (0, 200)
    assert place_labels((800, 600), [(0, 0, 800, 600)], [(50, 20)]) == [(0, 0, 50, 20)]


def test_points_have_a_ring_around_them():
    drawn = np.asarray(draw_points(PLAIN[2], [Point("", 350, 250)]))
    rows, columns = np.nonzero((drawn != 128).any(-1))
    assert (columns.min() + columns.max()) / 2 == pytest.approx(350, abs=1.5)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(250, abs=1.5) and columns.max() - columns.min() < 20


@pytest.mark.parametrize("size", [(700, 500), (40, 900), (900, 40), (641, 30)], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (1, 0), (0.5, 0.5), (1, 1), (0, 1), (0.5, 0)], ids=str)
def test_a_label_never_hides_the_ring_it_names(size, place):
    at = Point("a long name", place[0] * (size[0] - 1), place[1] * (size[1] - 1))
    picture = Image.new("RGB", size, "#808080")
    ring = np.asarray(draw_points(picture, [Point("", at.x, at.y)]))
    seen = (ring != 128).any(-1)
    assert seen.any()
    assert np.array_equal(np.asarray(draw_points(picture, [at]))[seen], ring[seen])


def test_outlines_leave_most_of_a_box_in_wide_pictures():
    grey = Image.new("RGB", (2000, 30), "#808080")
    drawn = np.asarray(draw_boxes(grey, [Box("", 0, 0, 2000, 30), Box("", 900, 5, 950, 25)]))
    assert (drawn[8:22, 5:895] == 128).all() and (drawn[10:20, 905:945] == 128).all()


def test_one_box_or_point_may_stand_for_a_list():
    box, point = Box("a", 20, 30, 90, 120), Point("a", 50, 60)
    assert draw_boxes(NOISE, box).tobytes() == draw_boxes(NOISE, [box]).tobytes()
    assert draw_points(NOISE, point).tobytes() == draw_points(NOISE, [point]).tobytes()


@pytest.mark.parametrize(
    ("draw", "given", "message"),
    [
        (draw_boxes, [Box("a", float("nan"), 1, 2, 3)], r"Box\(label='a', left=nan.*no finite numbers"),
        (draw_boxes, Box("a", 0, 1, float("inf"), 3), r"right=inf.*no finite numbers"),
        (draw_points, [Point("a", 1, float("nan"))], r"Point\(label='a', x=1, y=nan.*no finite numbers"),
        (draw_boxes, [Box("a", "1", 1, 2, 3)], r"left='1'.*no finite numbers"),  # type: ignore[arg-type]
        (draw_boxes, [Point("a", 1, 2)], "boxes holds Point, expected Box"),
        (draw_points, [(1, 2)], "points holds tuple, expected Point"),
        (draw_boxes, None, "boxes is NoneType, expected a list of Box"),
    ],
)
def test_what_is_no_place_is_refused_by_name(draw, given, message):
    with pytest.raises(OptionError, match=message):
        draw(NOISE, given)


def test_a_label_that_no_font_can_write_is_said():
    with pytest.warns(AnswerWarning, match=r"label .* no font of this system that is known has its letters"):
        draw_boxes(NOISE, Box("\U00013000", 20, 30, 90, 120))


def test_a_font_of_the_system_writes_what_pillows_lacks():
    """Armenian, which DejaVu Sans has, found by its name in the folders of the system."""
    try:
        ImageFont.truetype("DejaVuSans.ttf", 11)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_boxes(PLAIN[0], Box("\u0531\u0532", 200, 150, 500, 350))
    assert drawn.tobytes() != draw_boxes(PLAIN[0], Box("\u0533\u0534", 200, 150, 500, 350)).tobytes()


@pytest.mark.parametrize("scale", [0, -1, 65, 1.5, True, "2"])
def test_a_scale_that_makes_no_sense_is_refused(scale):
    with pytest.raises(OptionError, match="expected an integer from 1 to 64"):
        draw_boxes(NOISE, [], scale=scale)
    with pytest.raises(ImageError, match="no such picture"):
        draw_boxes("nowhere.png", [])


def test_a_turned_file_is_drawn_upright(tmp_path):
    picture = Image.new("RGB", (700, 500), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 100, 100), fill="black")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(draw_boxes(tmp_path / "a.png", [])), np.asarray(picture))


# --- export


BOXES = [Box("ring", 1.004, 2, 11, 22.5, 0), Box("cross", 0, 0, 5, 5, 1), Box("ring", 0, 0, 1, 1, 1)]


def test_coco_has_pictures_annotations_and_categories():
    made = to_coco(BOXES, ["a.png", "b.png"], [(100, 50), (20, 10)])
    assert made["images"][1] == {"id": 2, "file_name": "b.png", "width": 20, "height": 10}
    assert made["categories"] == [{"id": 1, "name": "cross"}, {"id": 2, "name": "ring"}]
    first, second, third = made["annotations"]
    assert first == {
        **{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1.0, 2, 10.0, 20.5]},
        **{"area": 204.92, "iscrowd": 0},
    }
    assert (second["image_id"], second["category_id"], third["category_id"]) == (2, 1, 2)
    assert to_coco([], [], []) == {"images": [], "annotations": [], "categories": []}


def test_rows_have_the_columns_of_the_table():
    assert to_rows(BOXES[1:2], ["a.png", "b.png"]) == [["b.png", "cross", 0, 0, 5, 5]]


def test_boxes_of_pictures_that_are_not_given_are_refused():
    for call in (lambda: to_rows(BOXES, ["a.png"]), lambda: to_coco(BOXES, ["a.png"], [(1, 1)])):
        with pytest.raises(OptionError, match="a box is of picture 1, but there are 1"):
            call()
    with pytest.raises(OptionError, match="2 names and 1 sizes"):
        to_coco(BOXES, ["a.png", "b.png"], [(1, 1)])


def test_results_become_values_of_json():
    box = Box("a", 0, 1 / 3, 2, 3)
    wanted = {"label": "a", "left": 0, "top": 0.33, "right": 2, "bottom": 3, "image": 0}
    assert plain({"boxes": [box], "pi": 3.14159}) == {"boxes": [wanted], "pi": 3.14159}
    assert plain(Region("text", "b", box)) == {"label": "text", "text": "b", "box": wanted, "image": 0}
    assert plain(Point("c", 1 / 3, 2)) == {"label": "c", "x": 0.33, "y": 2, "image": 0}
