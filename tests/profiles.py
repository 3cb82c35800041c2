"""ICC profiles to test with, of three primaries and a curve, and pictures in their colours."""

from __future__ import annotations

import struct

import numpy as np

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # chromaticities of red, green and blue
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_D50, _D65 = np.array([0.9642, 1.0, 0.8249]), np.array([0.3127 / 0.3290, 1.0, 0.3583 / 0.3290])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def linear(levels: np.ndarray) -> np.ndarray:
    """sRGB's curve: levels 0..1 to light 0..1."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def levels(light: np.ndarray) -> np.ndarray:
    """The inverse of `linear`, of light that is clipped to 0..1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(3, 3): light of three primaries, whose sum is D65, to XYZ."""
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    return columns * np.linalg.solve(columns, _D65)


def p3_as_srgb(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 in Display P3 -> uint8 in sRGB, by arithmetic alone."""
    matrix = np.linalg.inv(to_xyz(SRGB)) @ to_xyz(DISPLAY_P3)
    return np.rint(levels(linear(pixels / 255) @ matrix.T) * 255).astype(np.uint8)


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float | None = None, name: str = "test") -> bytes:
    """A profile of a display: its primaries, and sRGB's curve or a power."""
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ _D65)) @ _BRADFORD
    columns = (adapted @ to_xyz(primaries)).T
    xyz = {tag: _xyz(column) for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return _profile(b"RGB ", name, {**xyz, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", "grey", {b"kTRC": _curve(gamma)})


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    table = np.rint(linear(np.linspace(0, 1, 1024)) * 65535).astype(int)
    return b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *table)


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(_D50),
        **tags,
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _xyz(_D50)[8:]
    return head.ljust(128, b"\0") + table + body


def cmyk_profile() -> bytes:
    """Of a press: a table of the Lab colours of inks on each other, two steps of each ink, the last changes fastest."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    cyan, magenta, yellow, black = inks.T
    light = np.clip(95 - 40 * cyan - 46 * magenta - 6 * yellow, 10, 95) * (1 - 0.9 * black)
    colour = 1 - black
    red, blue = (-37 * cyan + 74 * magenta - 5 * yellow) * colour, (-50 * cyan - 3 * magenta + 93 * yellow) * colour
    table = np.stack([light * 2.55, red + 128, blue + 128], axis=-1)
    straight = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(np.eye(3, dtype=int).ravel() * 65536))
    lut += straight * 4 + np.clip(np.rint(table), 0, 255).astype(np.uint8).tobytes() + straight * 3
    return _profile(b"CMYK", "press", {b"A2B0": lut}).replace(b"XYZ ", b"Lab ", 1).replace(b"mntr", b"prtr", 1)
