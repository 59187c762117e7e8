"""What the machine can do for a model: cores, number formats, and how its failures show."""

import contextlib
import copy
import os
import time
from pathlib import Path
from typing import Any

from serve_app.settings import Precision

CPU_LIBRARIES = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""OpenMP's threads wait for one another by spinning: beside other busy processes a step then took 50 times as long. And oneDNN
keeps what it prepared for 1,024 shapes: 150 MB where every window has a length of its own."""


def choose_precision(model: Any, device: str, *, is_small: bool) -> Precision:
    """bf16 where the hardware is faster with it: known for GPUs, measured for CPUs on one layer of this very model."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if is_small:
        return "fp32"
    layer = copy.deepcopy(model.encoder.layers[0].feed_forward1)
    seconds: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        layer.to(dtype)
        frames = torch.zeros(1, 375, model.cfg.encoder.d_model, dtype=dtype)
        runs = []
        with torch.inference_mode():
            for _ in range(6):
                started = time.perf_counter()
                layer(frames)
                runs.append(time.perf_counter() - started)
        seconds.append(min(runs))
    return "bf16" if seconds[1] < 0.75 * seconds[0] else "fp32"


def is_out_of_memory(error: Exception) -> bool:
    """torch has a type of its own for this on GPUs only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def is_device_failure(error: Exception) -> bool:
    """Whether a GPU, and with it this process's use of it, is lost. The libraries on top of CUDA raise types of their own."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in ("cuda error", "cuda runtime error", "cudnn error", "cublas error", "acceleratorerror"))


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, and of a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
