"""The CPU cores of this process."""

import contextlib
import os
from pathlib import Path


def usable_cores() -> int:
    """Number of cores that this process may use: its CPU affinity, limited by the container's quota (cgroup v2, rounded down, at
    least 1)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
