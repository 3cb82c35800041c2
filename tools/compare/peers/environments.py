"""An interpreter for each side, and what a process of it sees."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .rows import HF, OURS, VLM

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = {
    OURS: [f"{ROOT}[cpu]"],
    VLM: ["mlx[cpu]", "mlx-vlm==0.7.10"],
    HF: ["torch", "torchvision", "transformers==5.23.0"],
}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OPENBLAS = ("libopenblas.so.0", "libopenblasp.so.0")


def python(side: str, given: str | None, work: Path) -> str:
    """The interpreter of a side: the one given, or that of a virtual environment in `work`, made if it is not there."""
    if given is not None:
        return given
    folder = work / "environments" / side
    program, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"setting up {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        index = ["--extra-index-url", TORCH_INDEX] if side == HF else []
        install = [str(program), "-m", "pip", "install", "--quiet", *index, *REQUIREMENTS[side]]
        if side == OURS:
            install.insert(-1, "--editable")
        subprocess.run(install, check=True)
        ready.touch()
    return str(program)


def environment(side: str, blas: bool, work: Path) -> dict[str, str]:
    """Variables of a process: no network; the modules of this repository; for MLX OpenBLAS, or none that could be
    found: empty files of its names stand first in the path of libraries. Modules are not compiled anew each time."""
    left_out = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    variables |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MLX_ENABLE_TF32": "0",
        "PYTHONPATH": str(ROOT),
    }
    if side != HF and blas:
        variables["LD_PRELOAD"] = OPENBLAS[0]
    if side != HF and not blas:
        hidden = work / "without-blas"
        hidden.mkdir(exist_ok=True)
        for name in OPENBLAS:
            (hidden / name).touch()
        variables["LD_LIBRARY_PATH"] = str(hidden)
    return variables


def has_openblas(side: str, program: str, variables: Mapping[str, str]) -> bool:
    """Whether a process that imports MLX as this side does has OpenBLAS loaded (NumPy's own has another name)."""
    start = "from mlx_lfm2vl import backends; backends.require()" if side == OURS else "import mlx.core"
    code = f"{start}; print(any('/libopenblas' in line for line in open('/proc/self/maps')))"
    done = subprocess.run([program, "-c", code], env=dict(variables), stdout=subprocess.PIPE, check=True)
    return done.stdout.strip() == b"True"
