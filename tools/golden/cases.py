"""The prompts that are frozen: what goes into the reference, nothing about what comes out."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One call of the reference.

    `conversations` holds one list of messages a prompt, as chat templates take them, with {"type": "image", "picture":
    NAME} where a picture of pictures.py stands. `options` are the keyword arguments of the processor's call.
    `padding_side` is set where there are several prompts.
    """

    checkpoint: str
    name: str
    conversations: list[list[dict[str, Any]]]
    options: dict[str, Any] = field(default_factory=dict)
    padding_side: str | None = None

    @property
    def id(self) -> str:
        return f"{self.checkpoint}-{self.name}"

    @property
    def picture_names(self) -> list[list[str]]:
        """The pictures of each prompt, in the order in which they stand in it."""
        return [
            [
                part["picture"]
                for turn in turns
                if isinstance(turn["content"], list)
                for part in turn["content"]
                if "picture" in part
            ]
            for turns in self.conversations
        ]


def user(*parts: str) -> dict[str, Any]:
    """A user's turn of texts and, written as `@name`, pictures."""
    content: list[dict[str, Any]] = [
        {"type": "image", "picture": part[1:]} if part.startswith("@") else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def _both(left: list[list[dict[str, Any]]], checkpoint: str) -> list[Case]:
    return [Case(checkpoint, f"batch-{side}", left, {}, side) for side in ("left", "right")]


WHAT = "What is in this picture?"
TURNS = [
    {"role": "system", "content": "Answer with one word."},
    user("@square", "How many shapes are there?"),
    {"role": "assistant", "content": "four"},
    user("And here? ", "@small"),
]
BATCH = [
    [user("@portrait", "Describe the image.")],
    [user("Compare ", "@landscape", " with ", "@small", ". Are they the same colour?")],
]

CASES: list[Case] = [
    # 16..64 tokens, tiles of 128 pixels: every grid is below the position table's, so antialiasing always matters.
    Case("gen2", "landscape", [[user("@landscape", WHAT)]]),
    Case("gen2", "portrait", [[user("@portrait", WHAT)]]),
    Case("gen2", "small", [[user("@small", WHAT)]]),
    Case("gen2", "square", [[user("@square", WHAT)]]),
    Case("gen2", "tiled", [[user("@photo", WHAT)]]),
    Case("gen2", "tiled-no-thumbnail", [[user("@tall", WHAT)]], {"use_thumbnail": False}),
    Case("gen2", "several", [[user("Media-1: ", "@landscape", " Media-2: ", "@photo", " Media-3: ", "@small", WHAT)]]),
    Case("gen2", "text", [[user("Please read the text and write it down in one line: 2026, ünïcode, 漢字.")]]),
    Case("gen2", "turns", [TURNS]),
    *_both(BATCH, "gen2"),
    Case("gen2", "batch-tiled", [[user("@photo", WHAT)], [user("@small", "How many?")]], {}, "left"),
    Case("gen2", "batch-text", [[user("How many shapes are there?")], [user("@wide", WHAT)]], {}, "left"),
    Case("gen2", "fewer-tokens", [[user("@landscape", WHAT)]], {"max_image_tokens": 32, "min_image_tokens": 8}),
    Case("gen2", "no-splitting", [[user("@photo", WHAT)]], {"do_image_splitting": False}),
    Case("gen2", "tile-counts", [[user("@photo", WHAT)]], {"min_tiles": 3, "max_tiles": 4}),
    Case("gen2", "no-markers", [[user("@photo", WHAT)]], {"use_image_special_tokens": False}),
    Case("gen2", "column", [[user("@column", WHAT)]]),
    Case("gen2", "strip", [[user("@strip", WHAT)]]),
    # 64..256 tokens, tiles of 512 pixels, as published.
    Case("gen25", "landscape", [[user("@landscape", WHAT)]]),
    Case("gen25", "small", [[user("@small", WHAT)]]),
    Case("gen25", "photo", [[user("@photo", WHAT)]]),
    Case("gen25", "tiled", [[user("@large", WHAT)]]),
    Case("gen25", "tiled-no-thumbnail", [[user("@large", WHAT)]], {"use_thumbnail": False}),
    Case("gen25", "several", [[user("@wide", "@small", "Compare these pictures.")]]),
    Case("gen25", "text", [[{"role": "user", "content": "How many shapes are there?"}]]),
    Case("gen25", "turns", [TURNS]),
    *_both(BATCH, "gen25"),
    Case("gen25", "fewer-tokens", [[user("@photo", WHAT)]], {"max_image_tokens": 128}),
    Case("gen25", "no-splitting", [[user("@large", WHAT)]], {"do_image_splitting": False, "max_image_tokens": 96}),
    Case(
        "gen25",
        "tile-size",
        [[user("@tall", WHAT)]],
        {"tile_size": 128, "max_image_tokens": 64, "min_image_tokens": 16, "max_pixels_tolerance": 1.0, "max_tiles": 3},
    ),
    Case("gen25", "bicubic", [[user("@portrait", WHAT)]], {"resample": 3}),
    Case("gen25", "column", [[user("@column", WHAT)]]),
    Case("gen25", "strip", [[user("@strip", WHAT)]]),
    Case("untied", "landscape", [[user("@landscape", WHAT)]]),
    Case("untied", "tiled", [[user("@photo", WHAT)]]),
    Case("untied", "several", [[user("@square", "@portrait", "Compare these pictures.")]]),
    Case("untied", "text", [[user("How many shapes are there?")]]),
]
