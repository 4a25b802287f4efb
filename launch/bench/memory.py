"""How much memory this process has used at most."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """Largest resident memory since the start, or since the last `reset_peak`.

    On Linux it is the kernel's mark for this program: that of `getrusage` counts the parent before `exec` as well.
    """
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no line VmHWM; peak memory cannot be measured on this kernel")


def reset_peak() -> None:
    """Lets the peak start again from the present memory, where the kernel can (Linux)."""
    if CLEAR.exists():
        CLEAR.write_text("5")
