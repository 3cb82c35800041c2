"""Draws the pictures on which a quantisation is calibrated and measured (mlx_lfm2vl/conversion/calibration/).

    python -m tools.demo.calibration mlx_lfm2vl/conversion/calibration

Scenes of the kinds that vision-language models are asked about. Measured is on shapes, a chart, printed text, a table,
a textured landscape, and a plan large enough to be cut into tiles. Calibrated is on others: documents, screens and
scenes with the light of photographs (`tools.demo.calibration_scenes`). The same files come out at every run.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .calibration_scenes import PAGES, PHOTOGRAPHS

INK = (25, 25, 30)


def shapes() -> Image.Image:
    image = Image.new("RGB", (384, 288), (238, 240, 232))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 40, 140, 150), fill=(204, 48, 44))
    draw.rectangle((180, 60, 300, 130), fill=(40, 92, 190))
    draw.polygon([(250, 260), (330, 160), (370, 265)], fill=(236, 180, 40))
    draw.ellipse((60, 190, 110, 240), fill=(46, 150, 84))
    draw.line((10, 275, 200, 200), fill=INK, width=5)
    return image


def chart() -> Image.Image:
    image = Image.new("RGB", (416, 320), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    draw.text((130, 8), "Visitors per day", fill=INK, font=font)
    for index, (name, value) in enumerate([("Mon", 120), ("Tue", 95), ("Wed", 180), ("Thu", 60), ("Fri", 210)]):
        left = 60 + index * 68
        draw.rectangle((left, 280 - value, left + 44, 280), fill=(70, 110 + 25 * index, 200 - 30 * index))
        draw.text((left + 8, 288), name, fill=INK, font=font)
        draw.text((left + 8, 262 - value), str(value), fill=INK, font=font)
    draw.line((50, 40, 50, 280, 400, 280), fill=INK, width=2)
    return image


def notice() -> Image.Image:
    image = Image.new("RGB", (448, 256), (252, 250, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, 439, 247), outline=INK, width=3)
    draw.text((120, 24), "LIBRARY HOURS", fill=INK, font=ImageFont.load_default(26))
    lines = (
        "Monday to Thursday   9:00 - 19:30",
        "Friday               9:00 - 17:00",
        "Saturday           10:00 - 14:00",
    )
    for index, line in enumerate((*lines, "Please return 3 books by 24 June.")):
        draw.text((40, 84 + 36 * index), line, fill=INK, font=ImageFont.load_default(20))
    return image


def receipt() -> Image.Image:
    image = Image.new("RGB", (256, 448), (246, 246, 246))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(17)
    draw.text((60, 20), "CORNER SHOP", fill=INK, font=font)
    rows = [("Apples", "2.40"), ("Bread", "3.10"), ("Coffee", "7.95"), ("Pasta", "1.25"), ("Tea", "4.00")]
    for index, (name, price) in enumerate([*rows, ("", ""), ("TOTAL", "18.70"), ("CASH", "20.00"), ("CHANGE", "1.30")]):
        draw.text((24, 70 + 36 * index), name, fill=INK, font=font)
        draw.text((180, 70 + 36 * index), price, fill=INK, font=font)
    return image


def landscape() -> Image.Image:
    height, width = 320, 480
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    sky = np.stack([120 + rows * 0.35, 165 + rows * 0.2, 225 - rows * 0.1], axis=-1)
    hills = 190 + 28 * np.sin(columns / 47) + 14 * np.sin(columns / 19 + 1)
    grass = np.stack([60 + 25 * np.sin(columns / 7 + rows / 3), 120 + 30 * np.sin(rows / 5), 50 + 0 * rows], axis=-1)
    pixels = np.where((rows > hills)[..., None], grass, sky)
    image = Image.fromarray(np.clip(np.round(pixels / 8) * 8, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((380, 30, 440, 90), fill=(250, 225, 110))
    draw.polygon([(90, 230), (150, 170), (210, 230)], fill=(150, 50, 40))
    draw.rectangle((100, 230, 200, 300), fill=(225, 205, 170))
    draw.rectangle((135, 255, 165, 300), fill=(95, 60, 40))
    return image


def plan() -> Image.Image:
    image = Image.new("RGB", (960, 704), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(30)
    rooms = {
        "Kitchen": (40, 40, 400, 300),
        "Hall": (400, 40, 560, 660),
        "Office": (560, 40, 920, 260),
        "Bedroom": (560, 260, 920, 660),
        "Bath": (40, 300, 220, 660),
        "Living room": (220, 300, 400, 660),
    }
    for index, (name, box) in enumerate(rooms.items()):
        draw.rectangle(box, outline=INK, width=6, fill=(235 - 12 * index, 240, 225 + 5 * index))
        size = f"{(box[2] - box[0]) / 80:.1f} x {(box[3] - box[1]) / 80:.1f} m"
        draw.text((box[0] + 16, box[1] + 16), name, fill=INK, font=font)
        draw.text((box[0] + 16, box[1] + 56), size, fill=INK, font=ImageFont.load_default(22))
    return image


def main(folder: str) -> None:
    for draw in (shapes, chart, notice, receipt, landscape, plan, *PAGES):
        draw().quantize(64).save(Path(folder) / f"{draw.__name__}.png", optimize=True)
    for draw in PHOTOGRAPHS:
        draw().save(Path(folder) / f"{draw.__name__}.jpg", quality=85)


if __name__ == "__main__":
    main(*sys.argv[1:])
