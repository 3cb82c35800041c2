"""How much memory a process has held. Programs that tests run import it, in this folder or with it in their path."""

import re
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Bytes, since the process began. Linux lets a child begin with its parent's figure in `getrusage`, so that growth
    below it is not seen."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
