"""Measures whether the attention of `explain` lies on what an answer names, on the demo's held-out pictures.

    python -m tools.demo.evidence                # the bundled demo, 200 pictures of each kind
    python -m tools.demo.evidence -n 20 --json

A description names objects; of each that is really there, the words for its size, colour and shape are looked at. A
question "What colour is the ring?" is about one object; its answer is one word. For both it prints, over all named
objects: the share of the picture that their boxes take, the share of the map that lies in them, the share that lies in
the boxes of the other objects of the picture (by their area: 1 is what an even map gives), and how often the highest
cell touches the box. The maps: of each layer, of all layers, above their mean as they are drawn, and above the map of a
neutral prompt ("Describe the image.", its first token), a remedy for attention that every question draws (Zhang et al.,
"MLLMs Know Where to Look", ICLR 2025, who divide by it).

The cells of a map are 32 pixels here and the boxes 21 to 46, so no map can lie in a box as a whole.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from mlx_lfm2vl import Explanation, demo, explain, load
from mlx_lfm2vl.explanation.overlay import above_mean
from mlx_lfm2vl.explanation.picture_map import mass_in

from . import tasks

FIRST = 30_000_000  # seed of the first held-out picture, by none of which the drawn map was chosen
NEUTRAL = "Describe the image."
_NAMED = re.compile(r"(small|large) (\w+) (\w+)")
Box = tuple[float, float, float, float]
Loaded = tuple[Any, Any]  # model and processor


@dataclass(frozen=True)
class Seen:
    """Words of an answer about an object whose box, in shares of the picture, is `box`; `others` are the rest's."""

    explanation: Explanation
    neutral: Explanation
    tokens: tuple[int, int]
    box: Box
    others: tuple[Box, ...]

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """Maps by what they are called, each of the sum 1."""
        explanation = self.explanation
        made = {f"layer {layer}": explanation.map(self.tokens, layers=[layer]) for layer in explanation.layers}
        made["all layers"] = whole = explanation.map(self.tokens)
        made["above the mean"] = above_mean(whole)
        made["above a neutral prompt"] = np.maximum(whole - self.neutral.map(0), 0)
        return {name: each / max(each.sum(), 1e-12) for name, each in made.items()}


def described(loaded: Loaded, number: int) -> Iterator[Seen]:
    """The objects that the description of a picture names."""
    sample = tasks.make("describe", "test", FIRST + number)
    answer = explain(*loaded, "What is in this image?", sample.images[0], max_tokens=100)
    neutral = explain(*loaded, NEUTRAL, sample.images[0], max_tokens=1)
    for found in _NAMED.finditer(answer.text):
        for index, thing in enumerate(sample.things[0]):
            if found.groups() == (thing.size, thing.colour, thing.shape):
                words = [n for n, (low, high) in enumerate(answer.spans) if low < found.end() and high > found.start()]
                yield Seen(answer, neutral, (words[0], words[-1] + 1), *_boxes(sample, index))
                break


def asked(loaded: Loaded, number: int) -> Iterator[Seen]:
    """The objects of a picture whose colour is asked for and answered rightly."""
    sample = tasks.make("describe", "test", FIRST + 1_000_000 + number)
    shapes = [thing.shape for thing in sample.things[0]]
    neutral = explain(*loaded, NEUTRAL, sample.images[0], max_tokens=1)
    for index, thing in enumerate(sample.things[0]):
        if shapes.count(thing.shape) == 1:
            answer = explain(*loaded, f"What colour is the {thing.shape}?", sample.images[0], max_tokens=8)
            if answer.text == tasks.capital(thing.colour):
                found = answer.tokens_of(thing.colour.capitalize())
                yield Seen(answer, neutral, (found.start, found.stop), *_boxes(sample, index))


def _boxes(sample: tasks.Sample, index: int) -> tuple[Box, tuple[Box, ...]]:
    """The box of an object and those of the others, in shares of the picture."""
    width, height = sample.images[0].size
    boxes = [
        (left / width, top / height, right / width, bottom / height) for left, top, right, bottom in sample.extents[0]
    ]
    return boxes[index], tuple(boxes[:index] + boxes[index + 1 :])


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def touches(attention: np.ndarray, box: Box) -> bool:
    """Whether the highest cell of a map and the box have a part in common."""
    highest = np.zeros_like(attention)
    highest.flat[int(attention.argmax())] = 1
    return bool(mass_in(highest, box) > 0)


def rates(seen: list[Seen]) -> dict[str, dict[str, float]]:
    """Of each kind of map: the means over all named objects."""
    made = {}
    for name in seen[0].maps:
        rest = [mass_in(one.maps[name], box) / area(box) for one in seen for box in one.others]
        made[name] = {
            "in the box": float(np.mean([mass_in(one.maps[name], one.box) for one in seen])),
            "by its area": float(np.mean([mass_in(one.maps[name], one.box) / area(one.box) for one in seen])),
            "others by their area": float(np.mean(rest)),
            "highest cell touches": float(np.mean([touches(one.maps[name], one.box) for one in seen])),
        }
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(demo.path()), help="default: the bundled demo")
    parser.add_argument("-n", type=int, default=200, help="pictures of each kind (default 200)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    loaded = load(args.model)
    found: dict[str, dict[str, Any]] = {}
    for kind, look in (("described", described), ("asked for", asked)):
        seen = [one for number in tqdm(range(args.n), kind) for one in look(loaded, number)]
        boxes = float(np.mean([area(one.box) for one in seen]))
        found[kind] = {"objects": len(seen), "share of the picture": boxes, "maps": rates(seen)}
    if args.json:
        print(json.dumps(found))
        return
    for kind, result in found.items():
        print(f"\n{kind}: {result['objects']} objects, {result['share of the picture']:.1%} of their pictures\n")
        print("| map | in the box | by its area | others by their area | highest cell touches |")
        print("| --- | --- | --- | --- | --- |")
        for name, row in result["maps"].items():
            inside, own, others, touching = row.values()
            print(f"| {name} | {inside:.1%} | {own:.2f} | {others:.2f} | {touching:.1%} |")


if __name__ == "__main__":
    main()
