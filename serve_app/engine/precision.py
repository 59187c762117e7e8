"""Chooses the floating-point format that a model runs in."""

import copy
import time
from typing import Any

from serve_app.settings import Precision


def choose_precision(model: Any, device: str, *, is_small: bool, packs_linear: bool = False) -> Precision:
    """The fastest format for inference of a loaded fp32 model.

    GPU: bf16 where the hardware supports it, else fp16. CPU: fp32 for small models. For others, a copy of one encoder layer is
    timed in fp32 and bf16, and bf16 is chosen if it saves more than a quarter of the time. The model itself is not changed.
    `packs_linear`: whether the fast path `packed_linear` will be used, with which fp32 may take half the time.
    """
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if is_small:
        return "fp32"
    seconds: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        layer = copy.deepcopy(model.encoder.layers[0].feed_forward1).to(dtype)
        if packs_linear:
            _pack_linear(layer)
        frames = torch.zeros(1, 375, model.cfg.encoder.d_model, dtype=dtype)
        runs = []
        with torch.inference_mode():
            for _ in range(6):
                started = time.perf_counter()
                layer(frames)
                runs.append(time.perf_counter() - started)
        seconds.append(min(runs))
    return "bf16" if seconds[1] < 0.75 * seconds[0] else "fp32"


def _pack_linear(layer: Any) -> None:
    """As the fast path does; where it fails there, the layer stays as it is here too."""
    import torch

    from serve_app.engine.lean_modules import PackedLinear

    try:
        packed = [(name, PackedLinear(part)) for name, part in layer.named_children() if type(part) is torch.nn.Linear]
    except Exception:
        return
    for name, part in packed:
        setattr(layer, name, part)
