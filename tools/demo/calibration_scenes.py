"""The pictures that a quantisation is calibrated on: documents, screens, and scenes with the light of photographs."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

INK, GREY, BLUE = (25, 25, 30), (120, 124, 130), (38, 98, 196)


Colour = tuple[int, int, int]


def _page(size: tuple[int, int], colour: Colour = (253, 253, 251)) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, colour)
    return image, ImageDraw.Draw(image)


def _lines(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], size: int, step: int) -> None:
    for index, line in enumerate(lines):
        draw.text((at[0], at[1] + step * index), line, fill=INK, font=ImageFont.load_default(size))


def invoice() -> Image.Image:
    image, draw = _page((416, 544))
    draw.text((28, 24), "INVOICE 2031", fill=BLUE, font=ImageFont.load_default(28))
    _lines(draw, (28, 70), ("Harbour Paper Ltd", "4 Quay Street", "Date: 12 March"), 15, 22)
    draw.rectangle((28, 150, 388, 176), fill=(224, 230, 240))
    rows = (
        ("Item", "Qty", "Price", "Total"),
        ("Envelopes", "40", "0.25", "10.00"),
        ("Ink, black", "3", "12.50", "37.50"),
        ("Folders", "12", "1.75", "21.00"),
        ("Delivery", "1", "6.00", "6.00"),
    )
    for line, row in enumerate(rows):
        for left, text in zip((36, 190, 250, 324), row, strict=True):
            draw.text((left, 154 + 34 * line), text, fill=INK, font=ImageFont.load_default(16))
        draw.line((28, 180 + 34 * line, 388, 180 + 34 * line), fill=GREY)
    _lines(draw, (224, 350), ("Sum        74.50", "VAT 20%    14.90", "To pay     89.40"), 17, 28)
    draw.text((28, 490), "Payment within 30 days. Thank you!", fill=GREY, font=ImageFont.load_default(15))
    return image


def form() -> Image.Image:
    image, draw = _page((448, 384), (250, 247, 238))
    draw.text((24, 16), "MEMBERSHIP FORM", fill=INK, font=ImageFont.load_default(24))
    fields = (("Name", "Ines Moreau"), ("Born", "7.11.1986"), ("Town", "Lyon"), ("Phone", "04 72 10 88 31"))
    for index, (label, value) in enumerate(fields):
        top = 64 + 52 * index
        draw.text((24, top + 8), label, fill=GREY, font=ImageFont.load_default(16))
        draw.rectangle((110, top, 420, top + 36), outline=GREY)
        draw.text((120, top + 6), value, fill=(30, 40, 140), font=ImageFont.load_default(20))
    for index, (label, ticked) in enumerate((("Adult", True), ("Student", False), ("Family", False))):
        left = 24 + 140 * index
        draw.rectangle((left, 292, left + 20, 312), outline=INK, width=2)
        if ticked:
            draw.line((left + 4, 302, left + 9, 308, left + 17, 295), fill=(30, 40, 140), width=3)
        draw.text((left + 28, 292), label, fill=INK, font=ImageFont.load_default(17))
    draw.line((230, 360, 420, 360), fill=GREY)
    draw.line([(240 + 6 * n, 346 + int(9 * np.sin(n * 1.7))) for n in range(24)], fill=(30, 40, 140), width=2)
    return image


def slide() -> Image.Image:
    image, draw = _page((640, 384), (28, 44, 74))
    draw.text((40, 32), "Energy by source, 2019 to 2023", fill="white", font=ImageFont.load_default(30))
    points = {"Wind": (120, 150, 170, 215, 240), "Coal": (210, 190, 150, 120, 80), "Solar": (40, 60, 75, 110, 160)}
    for (name, values), colour in zip(points.items(), ((110, 200, 255), (200, 200, 205), (255, 205, 80)), strict=True):
        line = [(90 + 100 * index, 350 - value) for index, value in enumerate(values)]
        draw.line(line, fill=colour, width=4)
        draw.text((line[-1][0] + 14, line[-1][1] - 10), name, fill=colour, font=ImageFont.load_default(18))
    draw.line((80, 90, 80, 350, 520, 350), fill="white", width=2)
    return image


def settings() -> Image.Image:
    image, draw = _page((320, 576), (242, 243, 247))
    draw.text((20, 20), "9:41", fill=INK, font=ImageFont.load_default(16))
    draw.text((20, 52), "Settings", fill=INK, font=ImageFont.load_default(30))
    rows = (
        ("Wi-Fi", "Home-5G"),
        ("Bluetooth", "On"),
        ("Battery", "64%"),
        ("Sounds", ""),
        ("Dark mode", ""),
        ("Storage", "41 GB"),
    )
    for index, (name, value) in enumerate(rows):
        top = 108 + 64 * index
        draw.rounded_rectangle((12, top, 308, top + 54), 12, fill="white")
        draw.ellipse((24, top + 13, 52, top + 41), fill=(60 + 30 * index, 140, 230 - 30 * index))
        draw.text((66, top + 16), name, fill=INK, font=ImageFont.load_default(18))
        if value:
            draw.text((216, top + 17), value, fill=GREY, font=ImageFont.load_default(16))
        else:
            on = name == "Sounds"
            draw.rounded_rectangle((244, top + 14, 292, top + 40), 13, fill=(70, 190, 100) if on else (205, 205, 210))
            left = 268 if on else 246
            draw.ellipse((left, top + 16, left + 22, top + 38), fill="white")
    return image


def terminal() -> Image.Image:
    image, draw = _page((512, 288), (18, 20, 26))
    lines = (
        ("$ python train.py --epochs 3", (130, 220, 130)),
        ("epoch 1  loss 2.417  acc 0.31", (210, 210, 215)),
        ("epoch 2  loss 1.902  acc 0.48", (210, 210, 215)),
        ("epoch 3  loss 1.655  acc 0.57", (210, 210, 215)),
        ("Traceback (most recent call last):", (240, 110, 110)),
        ('  File "train.py", line 84, in save', (240, 110, 110)),
        ("OSError: No space left on device", (240, 110, 110)),
        ("$ df -h /data", (130, 220, 130)),
    )
    for index, (text, colour) in enumerate(lines):
        draw.text((16, 16 + 32 * index), text, fill=colour, font=ImageFont.load_default(18))
    return image


def shop() -> Image.Image:
    image, draw = _page((640, 448), (255, 255, 255))
    draw.rectangle((0, 0, 640, 48), fill=BLUE)
    draw.text((20, 10), "Garden World", fill="white", font=ImageFont.load_default(24))
    draw.rounded_rectangle((260, 10, 480, 38), 8, fill="white")
    draw.text((272, 15), "Search", fill=GREY, font=ImageFont.load_default(15))
    draw.text((540, 14), "Cart (2)", fill="white", font=ImageFont.load_default(17))
    goods = (
        ("Watering can", "14.90", (70, 150, 90)),
        ("Spade", "22.00", (150, 110, 70)),
        ("Gloves", "8.50", (220, 120, 60)),
    )
    for index, (name, price, colour) in enumerate(goods):
        left = 20 + 208 * index
        draw.rectangle((left, 80, left + 184, 380), outline=(210, 214, 220))
        draw.ellipse((left + 42, 110, left + 142, 210), fill=colour)
        draw.text((left + 16, 240), name, fill=INK, font=ImageFont.load_default(20))
        draw.text((left + 16, 272), f"EUR {price}", fill=(180, 40, 40), font=ImageFont.load_default(18))
        draw.rounded_rectangle((left + 16, 320, left + 168, 356), 8, fill=BLUE)
        draw.text((left + 40, 328), "Add to cart", fill="white", font=ImageFont.load_default(17))
    return image


def _lit(image: Image.Image, seed: int, blur: float = 1.2) -> Image.Image:
    """A drawing as a camera sees it: soft, darker at the edges, with grain."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float64)
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    grain = np.random.default_rng(seed).normal(0, 3, (height, width, 1))
    return Image.fromarray(
        np.clip(pixels * (1 - 0.18 * (rows**2 + columns**2))[..., None] + grain, 0, 255).astype(np.uint8)
    )


def _ball(draw: ImageDraw.ImageDraw, centre: tuple[int, int], radius: int, colour: Colour) -> None:
    for step in range(radius, 0, -1):
        light = 0.55 + 0.75 * (1 - step / radius)
        shift = (radius - step) // 3
        box = (centre[0] - step - shift, centre[1] - step - shift, centre[0] + step - shift, centre[1] + step - shift)
        draw.ellipse(box, fill=tuple(min(255, int(value * light)) for value in colour))


def fruit() -> Image.Image:
    image, draw = _page((384, 288), (196, 178, 150))
    draw.rectangle((0, 0, 384, 110), fill=(118, 128, 134))
    draw.ellipse((60, 190, 330, 270), fill=(150, 132, 106))
    draw.ellipse((70, 170, 320, 250), fill=(228, 228, 222))
    for centre, radius, colour in (
        ((140, 165), 42, (196, 40, 36)),
        ((215, 150), 46, (236, 150, 40)),
        ((270, 185), 34, (110, 160, 50)),
        ((185, 200), 26, (90, 40, 100)),
    ):
        _ball(draw, centre, radius, colour)
    return _lit(image, 1)


def street() -> Image.Image:
    image, draw = _page((480, 320), (236, 170, 120))
    for row in range(150):
        draw.line((0, row, 480, row), fill=(90 + row, 110 + row // 2, 170 - row // 3))
    for index, height in enumerate((150, 200, 120, 230, 170)):
        left = 96 * index
        draw.rectangle((left, 240 - height, left + 92, 250), fill=(70 + 12 * index, 62, 70 - 4 * index))
        for window in range(12):
            across, down = left + 12 + 26 * (window % 3), 252 - height + 34 * (window // 3)
            if down < 220:
                draw.rectangle(
                    (across, down, across + 14, down + 20),
                    fill=(250, 214, 120) if (window + index) % 3 else (50, 54, 70),
                )
    draw.rectangle((0, 250, 480, 320), fill=(58, 58, 62))
    for left in range(10, 480, 80):
        draw.rectangle((left, 284, left + 40, 289), fill=(220, 220, 210))
    for left, colour in ((60, (170, 30, 34)), (270, (40, 80, 150))):
        draw.rounded_rectangle((left, 246, left + 110, 276), 8, fill=colour)
        draw.rounded_rectangle((left + 22, 226, left + 84, 252), 8, fill=(150, 180, 200))
        for wheel in (left + 16, left + 74):
            draw.ellipse((wheel, 264, wheel + 24, 288), fill=(20, 20, 22))
    return _lit(image, 2)


def people() -> Image.Image:
    image, draw = _page((384, 320), (150, 190, 220))
    draw.rectangle((0, 210, 384, 320), fill=(96, 140, 72))
    for left, skin, coat, tall in (
        (50, (226, 180, 150), (190, 60, 60), 0),
        (160, (120, 80, 56), (240, 200, 60), 24),
        (270, (200, 150, 116), (60, 90, 160), -20),
    ):
        draw.rounded_rectangle((left, 150 - tall, left + 70, 270), 20, fill=coat)
        draw.rectangle((left + 12, 260, left + 28, 306), fill=(50, 50, 60))
        draw.rectangle((left + 42, 260, left + 58, 306), fill=(50, 50, 60))
        _ball(draw, (left + 38, 122 - tall), 30, skin)
        draw.pieslice((left + 2, 84 - tall, left + 66, 146 - tall), 180, 360, fill=(60, 40, 30))
    _ball(draw, (330, 60), 26, (250, 236, 150))
    return _lit(image, 3)


PAGES = (invoice, form, slide, settings, terminal, shop)
PHOTOGRAPHS = (fruit, street, people)
