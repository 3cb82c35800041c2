"""For PyInstaller, which finds it by the entry point `pyinstaller40` when an app that uses mlx_lfm2vl is frozen.

In: nothing. Out: the folder of the hook; where an app has MLX's Metal kernels.
"""

from __future__ import annotations

import os
from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of `hook-mlx_lfm2vl.py`."""
    return [os.path.dirname(__file__)]


def metal_kernels(mlx: Path, work: Path) -> list[tuple[str, str]]:
    """Data entries (file, folder of the app) for `lib/mlx.metallib`, none where MLX has no Metal.

    MLX looks for it beside the library that was loaded. A frozen app loads `mlx/lib/libmlx.dylib`, or the link to it at
    the top of the app, so the kernels have a link there too. PyInstaller keeps a link whose target is an entry.

    Args:
        mlx: the installed folder `mlx`.
        work: a folder for links, of this build; made if it is not there.
    """
    kernels = mlx / "lib" / "mlx.metallib"
    if not kernels.is_file():
        return []
    work.mkdir(parents=True, exist_ok=True)
    folder, link = work / "mlx", work / kernels.name
    for path, target in ((folder, mlx), (link, Path("mlx", "lib", kernels.name))):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    return [(str(kernels), "mlx/lib"), (str(link), ".")]
