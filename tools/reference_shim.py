"""Lets transformers import torchvision where torchvision's compiled operators do not fit the installed torch.

The torchvision wheel of the package index is compiled for CUDA; beside a CPU build of torch its shared library does not
load, and then `import torchvision` stops because it wants to describe two operators that nobody has declared. The
reference image processor needs none of them: resizing is done by torch itself. Declaring the two is therefore enough.

Importing this module before transformers does that, and does nothing where torchvision is whole.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

# Operators for which torchvision registers a fake version at import, whether or not its library was loaded.
_DECLARED_AT_IMPORT = ("nms", "qnms")


def _operators_load() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the reference image processor needs torchvision: pip install -e '.[reference]'")
    libraries = list(Path(spec.origin).parent.glob("_C*"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


_library: torch.library.Library | None = None  # the declarations live as long as this object
if not _operators_load():
    _library = torch.library.Library("torchvision", "DEF")
    for _name in _DECLARED_AT_IMPORT:
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
