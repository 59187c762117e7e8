"""CPU inference: the cores that this process may use, and environment variables of OpenMP and oneDNN."""

import contextlib
import os
from pathlib import Path

CPU_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Environment variables that are set before torch is imported, unless they are set already.

By default OpenMP threads spin while they wait; with other busy processes on the machine, a step took 50 times as long. By default
oneDNN caches primitives for 1,024 shapes, which takes 150 MB when every window has another length.
"""


def usable_cores() -> int:
    """Number of cores that this process may use: its CPU affinity, limited by the container's quota (cgroup v2, rounded down, at
    least 1)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
