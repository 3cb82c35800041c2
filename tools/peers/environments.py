"""An interpreter for each side, and what a process of it sees."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .rows import HF, OURS, VLM

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = {
    OURS: [f"{ROOT}[cpu]"],
    VLM: ["mlx[cpu]", "mlx-vlm==0.7.10"],
    HF: ["torch", "torchvision", "transformers==5.23.0"],
}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OPENBLAS = "libopenblas.so.0"


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


def environment(side: str, blas: bool) -> dict[str, str]:
    """Variables of a process: no network; for MLX OpenBLAS, or none that could be found."""
    variables = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "PYTHONPATH")}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if side == OURS:
        variables["PYTHONPATH"] = str(ROOT)
    if side != HF and blas:
        variables["LD_PRELOAD"] = OPENBLAS
    return variables


def has_openblas(program: str, variables: Mapping[str, str]) -> bool:
    """Whether a process of this interpreter gets OpenBLAS loaded."""
    code = "print(any('libopenblas' in line for line in open('/proc/self/maps')))"
    done = subprocess.run([program, "-c", code], env=dict(variables), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.strip() == b"True"
