"""CPU cores that this process may use, and settings of the libraries that run on them."""

import contextlib
import os
from pathlib import Path

CPU_LIBRARIES = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Environment variables, unless they are set already. By default OpenMP's threads wait by spinning: beside other busy processes a
step then took 50 times as long. And oneDNN caches primitives for 1,024 shapes: 150 MB where every window has another length."""


def usable_cores() -> int:
    """Cores that this process may use, by its CPU affinity and its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
