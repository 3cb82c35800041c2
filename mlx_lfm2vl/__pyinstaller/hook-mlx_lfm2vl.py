"""Modules and files of mlx_lfm2vl and MLX that an app needs and PyInstaller cannot see in their imports."""

from importlib.metadata import distributions
from pathlib import Path

from PyInstaller.config import CONF
from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata, get_all_package_paths

from mlx_lfm2vl.__pyinstaller import metal_kernels

# Public names and commands are imported by their names; MLX's library imports modules of its package.
hiddenimports = [
    *collect_submodules("mlx_lfm2vl", filter=lambda name: "__pyinstaller" not in name),
    "mlx._reprlib_fix",
    "mlx.__array_api_info",
]
excludedimports = ["mlx_lfm2vl.__pyinstaller"]

# The demo model, the numbers of doctor, the pictures of calibration.
datas = collect_data_files("mlx_lfm2vl")
for folder in get_all_package_paths("mlx"):
    datas += metal_kernels(Path(folder), Path(CONF["workpath"], "metal"))

# The hub's client asks for the version of hf_xet before it uses it; doctor shows the others.
SHOWN = ("hf-xet", "numpy", "pillow", "tokenizers")
for name in {distribution.name for distribution in distributions()}:
    if name.replace("_", "-").lower() in SHOWN or name.startswith("mlx"):
        datas += copy_metadata(name)
