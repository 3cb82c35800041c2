"""The circumstances of a measurement: machine, back end, versions, and how fast its memory is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from .. import __version__, backends
from ..backends.cpu.layers import CpuLinear
from ..errors import OptionError

BANDWIDTH_BYTES = 2**28  # beyond any cache
PACKAGES = ("mlx", "mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True)
class Machine:
    """`device_type`: metal, cuda or cpu. `backend`: what computes a model, mlx or numpy. `memory` in bytes. `blas`:
    file name of a BLAS loaded beside MLX's own, if the system tells. `versions` by name of the package."""

    name: str
    system: str
    device_type: str
    backend: str
    device: str
    cores: int
    memory: int
    python: str
    blas: str | None
    versions: dict[str, str]


def describe() -> Machine:
    """The machine that this process runs on."""
    versions = {"mlx-lfm2vl": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Machine(
        name=_processor(),
        system=f"{_system()} {platform.machine()}",
        device_type=_device_type(),
        backend=backends.choose(),
        device=str(mx.device_info().get("device_name", "")),
        cores=os.cpu_count() or 0,
        memory=_memory(),
        python=platform.python_version(),
        blas=_blas(),
        versions=versions,
    )


def memory_bandwidth(size: int = BANDWIDTH_BYTES, repeats: int = 3) -> float:
    """Bytes a second that are moved here at best: of a copy (read and written), a sum and a matrix-vector product
    as the model makes it (read) of a float32 array of `size` bytes the fastest, each run `repeats` times after one to
    warm up."""
    array = mx.ones((size // 4 // 4096, 4096), mx.float32)
    vector = mx.ones((4096,), mx.float32)
    mx.eval(array, vector)
    linear = (CpuLinear if backends.choose() == "numpy" else nn.Linear)(1, 1, bias=False)
    linear.weight = array
    ways: tuple[tuple[Callable[[], mx.array], int], ...] = (
        (lambda: array + 1, 2 * array.nbytes),
        (lambda: array.sum(), array.nbytes),
        (lambda: linear(vector), array.nbytes),
    )
    best = 0.0
    for work, moved in ways:
        mx.eval(work())
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval(work())
            best = max(best, moved / (time.perf_counter() - start))
    return best


def import_seconds() -> float:
    """Seconds of `from mlx_lfm2vl import load, stream_generate` in a fresh interpreter, without its start. Raises
    `OptionError` in a frozen app, which has no interpreter to start."""
    if getattr(sys, "frozen", False):
        raise OptionError(
            "bench times the import in a fresh Python, which a frozen app lacks; install mlx-lfm2vl for it"
        )
    program = (
        "import time; start = time.perf_counter(); from mlx_lfm2vl import load, stream_generate; "
        "print(time.perf_counter() - start)"
    )
    root = str(Path(__file__).parent.parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=True,  # a Ctrl-C at the terminal is for this process to handle
    )
    return float(done.stdout)


def _device_type() -> str:
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release().split('-')[0]}"


def _processor() -> str:
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], stdout=subprocess.PIPE, text=True)
        if done.stdout.strip():
            return done.stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    """The machine's; where the system does not tell, what MLX says of the device, or 0."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return int(mx.device_info().get("memory_size", 0))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _blas() -> str | None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    files = {Path(line.split()[-1]).name for line in maps.read_text(encoding="utf-8", errors="replace").splitlines()}
    found = (name for name in sorted(files) if name.startswith(("libopenblas", "libmkl_rt", "libblis", "libflexiblas")))
    return next(found, None)  # not NumPy's own, whose names differ
