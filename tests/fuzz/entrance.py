"""What is fuzzed and how its inputs are changed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAGIC = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"2147483648", b"1.5", b'""', b"null", b"[]", b"{}")


@dataclass(frozen=True)
class Entrance:
    """`run(data)` returns where the input is accepted and raises one of `allowed` where it is refused; anything else is
    a finding, as is an execution of more than `seconds` of processor time or one that grows the process by more than
    `megabytes`. `repair` makes a changed input plausible again (checksums), for half of them."""

    name: str
    seeds: Callable[[], Mapping[str, bytes]]
    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    repair: Callable[[bytes], bytes] | None = None
    seconds: float = 5.0
    megabytes: int = 256
    executions: tuple[int, int] = (300, 100_000)  # in `make test` and `make soak`

    def input(self, number: int) -> tuple[str, bytes]:
        """The input of an execution: the name of its seed, and the bytes."""
        rng = random.Random(f"{self.name} {number}")
        seeds = self.seeds()
        name = rng.choice(sorted(seeds))
        data = mutated(seeds[name], seeds[rng.choice(sorted(seeds))], rng)
        if self.repair is not None and rng.random() < 0.5:
            data = self.repair(data)
        return name, data


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few changes, mostly small: of bits, bytes, numbers of any width and order, lengths; pieces of another file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8, 16))):
        at = rng.randrange(len(changed) + 1)
        # headers are where most is decided
        at = min(at, rng.choice((len(changed), len(changed), 64, 256)))
        kind = rng.randrange(11)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind <= 4:
            width = rng.choice("BHIQ")
            value = rng.choice(MAGIC) & ((1 << 8 * struct.calcsize(width)) - 1)
            new = struct.pack(rng.choice("<>") + width, value)
            changed[at : at + len(new)] = new
        elif kind == 5:
            del changed[at:]
        elif kind == 6:
            del changed[at : at + rng.choice((1, 2, 4, 16, 64))]
        elif kind == 7:
            changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 64)))
        elif kind == 8:
            piece = changed[at : at + rng.choice((1, 4, 16, 64))]
            changed[at:at] = piece * rng.choice((1, 2, 8, 64))
        elif kind == 9 and other:
            start = rng.randrange(len(other))
            piece = bytearray(other[start : start + rng.choice((4, 16, 64, 1024))])
            changed[at : at + rng.choice((0, len(piece)))] = piece
        else:
            digits = [i for i, byte in enumerate(changed) if 48 <= byte <= 57]
            if digits:
                at = rng.choice(digits)
                changed[at : at + 1] = rng.choice(NUMBERS)
    return bytes(changed)
