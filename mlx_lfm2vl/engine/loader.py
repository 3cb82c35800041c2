"""The function that loads an engine's model, and the check of its result."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..pretrained import load
from ..processing.processor import Lfm2VlProcessor
from .queue import Loaded

Loader = Callable[[], Loaded]


def named_loader(model: Any) -> tuple[Loader, str | None]:
    """The function that loads a model, and the model's name if it has one. Raises `OptionError`."""
    if isinstance(model, (str, os.PathLike)):
        return functools.partial(load, model), os.fspath(model)
    if not callable(model) or isinstance(model, Lfm2VlForConditionalGeneration):
        given = type(model).__name__ if callable(model) else f"{model!r:.60}"
        raise OptionError(f"loader is {given}, expected a model's name, or a function such as `lambda: load('demo')`")
    return model, None


def checked(loaded: Loaded) -> Loaded:
    """The pair that a loader returned. Raises `OptionError` unless it is a model and its processor."""
    types = (Lfm2VlForConditionalGeneration, Lfm2VlProcessor)
    if not (isinstance(loaded, tuple) and len(loaded) == 2 and all(map(isinstance, loaded, types))):
        raise OptionError(f"the loader returned {loaded!r:.100}, expected (model, processor) as `load` returns them")
    return loaded
