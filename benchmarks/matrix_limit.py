"""The physical limit of an encoder: what its matrix products and convolutions would take at the rate of the device's fastest
product. What it takes beyond that is memory traffic, small products and everything else."""

import time
from collections.abc import Sequence
from typing import Any

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.window import Samples

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Rows and columns of the square products that are tried, by device."""

RUNS = 3


def operations(engine: ParakeetEngine, windows: Sequence[Samples]) -> int:
    """Floating-point operations of the encoder for a batch, a multiplication and an addition as two. `engine`: without fast
    paths, since PyTorch cannot count those of oneDNN's kernels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    prepared = engine.prepare(windows)
    assert prepared.features is not None
    values = prepared.features.values.to(engine._dtype)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        engine._model.encoder(audio_signal=values, length=prepared.features.frame_counts)
    return int(counter.get_total_flops())


def operations_per_s(device: str, dtype: Any) -> float:
    """The rate of the fastest of the square products, operations a second."""
    import torch

    from serve_app.engine.lean_modules import PackedLinear

    best = 0.0
    for size in SIZES[device]:
        linear: torch.nn.Module = torch.nn.Linear(size, size, bias=False, device=device, dtype=dtype)
        x = torch.zeros(size, size, device=device, dtype=dtype)
        sides = [linear, PackedLinear(linear)] if device == "cpu" else [linear]  # type: ignore[arg-type]
        for product in sides:
            with torch.inference_mode():
                for _ in range(RUNS):
                    started = time.perf_counter()
                    product(x)
                    if x.is_cuda:
                        torch.cuda.synchronize()
                    best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
