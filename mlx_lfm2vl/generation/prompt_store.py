"""Entries of a `PromptCache` in a folder, for the next process: one safetensors file each.

A file holds the ids, the keys and values of the attention layers, and the convolution states and logits of the
checkpoints. Its name begins with a key of the model's files, so that states of other weights, dtypes and versions are
never read. A file is read like any foreign one: one whose tensors are not those of the model is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import WeightsError, first_line
from ..models.cache import Cache, CacheCheckpoint, KeyValueCache, state_shapes
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..weights.files import FLOATING, read_header
from . import kept_files
from .prompt_entry import Checkpoint, Entry, PictureSpan, StoredEntry, continues

FORMAT = "mlx_lfm2vl prompt states 1"
DEFAULT_BYTES = 4 * 2**30


class PromptStore:
    """The entries of one model in a folder, at most `limit` bytes of them; those not used for longest go first. To be
    used with a lock held. Raises `OptionError` and `OutputError`."""

    def __init__(self, folder: str | os.PathLike[str], limit: int, model: Lfm2VlForConditionalGeneration):
        self._folder, self._limit, self._config = Path(folder), limit, model.config.text_config
        self._kv_bits = model.kv_bits
        bits = [] if self._kv_bits is None else [f"keys and values of {self._kv_bits} bits"]
        self._prefix = kept_files.model_key("prompt_cache", model, FORMAT, *bits)
        files = kept_files.listed(self._folder, f"{self._prefix}-*.safetensors", "prompts")
        self.entries = [entry for file in files if (entry := self._look(file)) is not None]

    def _look(self, file: Path) -> StoredEntry | None:
        """A file's entry, without its states. None, with a warning, if it is none."""
        try:
            header = read_header(file)
            loaded: Any = mx.load(str(file), return_metadata=True)  # reads nothing yet
            said, ids = json.loads(loaded[1][FORMAT]), np.array(loaded[0]["ids"])
            spans = [(int(start), int(end), bytes.fromhex(key)) for start, end, key in said["pictures"]]
            pictures = tuple(PictureSpan(*span) for span in spans)
            entry = StoredEntry(
                file,
                file.stat().st_size,
                ids,
                pictures,
                tuple((int(at), f"checkpoint.{number}.logits" in header) for number, at in enumerate(said["ends"])),
            )
            if {name: info.shape for name, info in header.items()} != self._shapes(entry):
                raise WeightsError("it does not hold the states that it should")
            packed = (
                set() if self._kv_bits is None else {name for name in header if name.endswith((".keys", ".values"))}
            )
            if any(info.dtype not in FLOATING for name, info in header.items() if name not in packed and name != "ids"):
                raise WeightsError("its states are not floating-point numbers")
            if any(header[name].dtype != "U32" for name in packed):
                raise WeightsError("its keys and values are not packed")
            if ids.dtype != np.int64 or (ids < 0).any() or (ids >= self._config.vocab_size).any():
                raise WeightsError("its ids are none")
        except (WeightsError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            kept_files.warn(f"{file}: is no kept prompt and is left out ({first_line(error)})")
            return None
        return entry

    def _shapes(self, entry: StoredEntry) -> dict[str, tuple[int, ...]]:
        """The tensors of an entry's file by name."""
        config, length = self._config, len(entry.ids)
        ends = [at for at, _ in entry.ends]
        if not length or not ends or ends != sorted(set(ends)) or not 0 < ends[0] <= ends[-1] <= length:
            raise ValueError("its checkpoints are none")
        shapes: dict[str, tuple[int, ...]] = {"ids": (length,)}
        for number, layer in enumerate(Cache(config, self._kv_bits).layers):
            if isinstance(layer, KeyValueCache):
                for name, width in zip(layer.names, layer.widths(config.head_dim), strict=True):
                    shapes[f"layer.{number}.{name}"] = (1, config.num_key_value_heads, length, width)
        for number, (at, logits) in enumerate(entry.ends):
            for bounded, kept in enumerate(state_shapes(config, at)):
                shapes |= {f"checkpoint.{number}.{bounded}.{index}": shape for index, shape in enumerate(kept)}
            if logits:
                shapes[f"checkpoint.{number}.logits"] = (1, config.vocab_size)
        return shapes

    def read(self, stored: StoredEntry) -> Entry | None:
        """The whole entry. None, with a warning, where the file is gone or its numbers are none."""
        try:
            arrays = kept_files.read(stored.file, "states")
        except (WeightsError, RuntimeError) as error:
            self.entries.remove(stored)
            kept_files.warn(f"{stored.file}: is left out ({first_line(error)})")
            return None
        self.entries.remove(stored)
        self.entries.append(stored)
        points = []
        for number, (at, logits) in enumerate(stored.ends):
            states = tuple(
                tuple(arrays[f"checkpoint.{number}.{layer}.{index}"] for index in range(len(kept)))
                for layer, kept in enumerate(state_shapes(self._config, at))
            )
            own = arrays[f"checkpoint.{number}.logits"] if logits else None
            points.append(Checkpoint(CacheCheckpoint(at, states), own))
        cache = Cache(self._config, self._kv_bits)
        for number, layer in enumerate(cache.layers):
            if isinstance(layer, KeyValueCache):
                layer.states = tuple(arrays[f"layer.{number}.{name}"] for name in layer.names)
        cache.rewind(points[-1].state)
        return Entry(stored.ids, stored.pictures, cache, tuple(points))

    def write(self, entry: Entry) -> None:
        """Keeps an entry, in place of those that it continues; a warning where it cannot be written."""
        length = entry.checkpoints[-1].offset
        arrays: dict[str, mx.array] = {"ids": mx.array(entry.ids[:length].astype(np.int64))}
        for number, layer in enumerate(entry.cache.layers[: len(self._config.layer_types)]):
            if isinstance(layer, KeyValueCache):
                for name, array in zip(layer.names, layer.states, strict=True):
                    arrays[f"layer.{number}.{name}"] = mx.contiguous(array[..., :length, :])
        for number, point in enumerate(entry.checkpoints):
            for at, inputs in enumerate(point.state.states):
                arrays |= {f"checkpoint.{number}.{at}.{index}": array for index, array in enumerate(inputs)}
            if point.logits is not None:
                arrays[f"checkpoint.{number}.logits"] = point.logits
        pictures = tuple(picture for picture in entry.pictures if picture.end <= length)
        said = {
            "pictures": [(picture.start, picture.end, picture.key.hex()) for picture in pictures],
            "ends": [point.offset for point in entry.checkpoints],
        }
        name = hashlib.blake2b(json.dumps(said).encode() + entry.ids[:length].tobytes(), digest_size=12).hexdigest()
        file = self._folder / f"{self._prefix}-{name}.safetensors"
        if not kept_files.write(file, arrays, {FORMAT: json.dumps(said)}, "a prompt"):
            return
        size = kept_files.size(file)
        written = StoredEntry(file, size, entry.ids[:length], pictures, entry.ends)
        others = [stored for stored in self.entries if stored.file != file]
        gone = [stored for stored in others if continues(written, stored)]
        self.entries = [stored for stored in others if stored not in gone] + [written]
        while sum(stored.nbytes for stored in self.entries) > self._limit:
            gone.append(self.entries.pop(0))
        for stored in gone:
            kept_files.remove(stored.file)
