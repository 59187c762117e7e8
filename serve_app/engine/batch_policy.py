"""How large a replica's batches may be. Pure."""

from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings
from serve_app.window import SAMPLE_RATE

GPU_BATCH_AUDIO_S = 600.0
"""Padded audio per batch on a GPU where the settings leave it open, seconds."""

CPU_BATCH_AUDIO_S = 60.0
"""The same on a CPU."""


def max_batch_audio_s(batching: BatchingSettings, *, on_gpu: bool) -> float:
    """Most padded audio per batch, seconds."""
    return batching.max_batch_audio_s or (GPU_BATCH_AUDIO_S if on_gpu else CPU_BATCH_AUDIO_S)


def max_batch_windows(batching: BatchingSettings, window_s: float, *, on_gpu: bool) -> int:
    """Most windows of `window_s` seconds per batch, at least one."""
    return max(1, min(batching.max_batch_items, int(max_batch_audio_s(batching, on_gpu=on_gpu) / window_s)))


def batch_limits(batching: BatchingSettings, *, on_gpu: bool) -> BatchLimits:
    """The limits of a replica's queue."""
    max_samples = round(max_batch_audio_s(batching, on_gpu=on_gpu) * SAMPLE_RATE)
    return BatchLimits(max_samples, batching.max_batch_items, batching.ageing_s)
