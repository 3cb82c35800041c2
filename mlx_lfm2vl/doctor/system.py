"""Facts of a machine that may matter: versions, device, memory, settings, the hub's cache."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import backends
from ..backends.memory import free_memory
from ..benchmark.machine import Machine, describe
from ..errors import counted
from ..hub import cache_folder

TF32 = "MLX_ENABLE_TF32"


@dataclass(frozen=True)
class System:
    """The machine and what was set for this process.

    Args:
        machine: processor, system, device, memory, versions; its backend is that of the float32 rows.
        device_info: what MLX says of its device.
        free_memory: bytes that may still be taken, None where that is not known.
        wired_limit_mb: macOS's own `iogpu.wired_limit_mb`, 0 for its default; None elsewhere.
        tf32: whether MLX may multiply float32 as TF32, where the device can.
        environment: variables that are set and begin with MLX_.
        hub_cache: the folder of downloaded models, with ~ for the home folder.
        hub_cache_bytes: what it holds.
    """

    machine: Machine
    device_info: dict[str, Any]
    free_memory: int | None
    wired_limit_mb: int | None
    tf32: bool
    environment: dict[str, str]
    hub_cache: str
    hub_cache_bytes: int

    def facts(self) -> list[str]:
        """One line of text each."""
        machine = self.machine
        versions = [f"{name} {version}" for name, version in machine.versions.items()]
        free = "" if self.free_memory is None else f", {_size(self.free_memory)} free"
        chosen = ", ".join(f"{name}={value}" for name, value in self.environment.items()) or "nothing"
        lines = [
            ", ".join([*versions, f"Python {machine.python}"]),
            f"{machine.system}, {machine.name}, {counted(machine.cores, 'core')}, {_size(machine.memory)} memory{free}",
            f"backend {machine.backend} on {machine.device_type}, device {self._device()}",
        ]
        if "max_recommended_working_set_size" in self.device_info:
            wired = "" if self.wired_limit_mb is None else f"; iogpu.wired_limit_mb {self.wired_limit_mb}"
            size = _size(self.device_info["max_recommended_working_set_size"])
            lines.append(f"recommended working set {size}, wired while an answer is made{wired}")
        lines.append(f"TF32 {'on' if self.tf32 else 'off'}; environment: {chosen}")
        if self.tf32:
            lines.append(f"float32 rows may be out of bounds where the device has TF32: run with {TF32}=0")
        lines.append(f"hub cache {self.hub_cache}, {_size(self.hub_cache_bytes)}")
        return lines

    def _device(self) -> str:
        architecture = self.device_info.get("architecture")
        return self.machine.device + (f" ({architecture})" if architecture else "")


def inspect(backend: backends.Backend) -> System:
    """The machine that this process runs on, with `backend` for float32."""
    folder = cache_folder()
    return System(
        machine=replace(describe(), backend=backend),
        device_info=dict(mx.device_info()),
        free_memory=free_memory(),
        wired_limit_mb=_wired_limit_mb(),
        tf32=os.environ.get(TF32, "1").strip() != "0",
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith("MLX_")},
        hub_cache=_short(folder),
        hub_cache_bytes=_bytes_in(folder),
    )


def _wired_limit_mb() -> int | None:
    if sys.platform != "darwin":
        return None
    done = subprocess.run(["sysctl", "-n", "iogpu.wired_limit_mb"], stdout=subprocess.PIPE, text=True)
    text = done.stdout.strip()
    return int(text) if text.isdigit() else None


def _short(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)


def _bytes_in(folder: Path) -> int:
    """Bytes of all files below; links count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:  # it went away
                continue
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
