"""Limits of a replica's batches, from the settings and the device. Pure."""

from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings
from serve_app.window import SAMPLE_RATE

GPU_BATCH_AUDIO_S = 600.0
"""Default maximum of padded audio per batch on a GPU, seconds."""

CPU_BATCH_AUDIO_S = 60.0
"""Default maximum of padded audio per batch on a CPU, seconds."""


def max_batch_audio_s(batching: BatchingSettings, *, on_gpu: bool) -> float:
    """Maximum padded audio per batch, seconds: the setting, or the default of the device where the setting is 0."""
    return batching.max_batch_audio_s or (GPU_BATCH_AUDIO_S if on_gpu else CPU_BATCH_AUDIO_S)


def max_batch_windows(batching: BatchingSettings, window_s: float, *, on_gpu: bool) -> int:
    """Maximum number of windows of `window_s` seconds per batch, at least 1."""
    return max(1, min(batching.max_batch_items, int(max_batch_audio_s(batching, on_gpu=on_gpu) / window_s)))


def batch_limits(batching: BatchingSettings, *, on_gpu: bool) -> BatchLimits:
    """The limits for a replica's batch queue."""
    max_samples = round(max_batch_audio_s(batching, on_gpu=on_gpu) * SAMPLE_RATE)
    return BatchLimits(max_samples, batching.max_batch_items, batching.ageing_s)
