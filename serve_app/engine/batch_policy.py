"""Limits of a replica's batches, from the settings, the device and what a batch costs there. Pure."""

import math

from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings
from serve_app.window import SAMPLE_RATE

GPU_BATCH_AUDIO_S = 600.0
"""Default maximum of padded audio per batch on a GPU, seconds, where nothing was measured."""

CPU_BATCH_AUDIO_S = 60.0
"""The same on a CPU."""

MAX_BATCH_AUDIO_S = 4_000.0
"""Maximum of padded audio per batch, seconds, where neither the settings nor the device bound it."""


def max_batch_audio_s(
    batching: BatchingSettings, *, on_gpu: bool, cost: BatchCost | None = None, fits_audio_s: float = math.inf
) -> float:
    """Maximum padded audio per batch, seconds: the setting; where that is 0 what is efficient by `cost`, or else the default of
    the device. `fits_audio_s`: what fits into the device's memory."""
    default_s = GPU_BATCH_AUDIO_S if on_gpu else CPU_BATCH_AUDIO_S
    wanted_s = batching.max_batch_audio_s or (default_s if cost is None else cost.efficient_audio_s())
    return min(wanted_s, fits_audio_s, MAX_BATCH_AUDIO_S)


def max_batch_windows(batching: BatchingSettings, window_s: float, max_audio_s: float) -> int:
    """Maximum number of windows of `window_s` seconds in a batch with at most `max_audio_s` of padded audio; at least 1."""
    return int(max(1, min(batching.max_batch_items, max_audio_s / window_s)))


def batch_limits(batching: BatchingSettings, max_audio_s: float, cost: BatchCost | None = None) -> BatchLimits:
    """The limits for a replica's batch queue."""
    live_audio_s = max_audio_s if cost is None else min(max_audio_s, cost.audio_within(batching.target_step_s))
    return BatchLimits(
        max_samples=round(max_audio_s * SAMPLE_RATE),
        max_live_samples=round(live_audio_s * SAMPLE_RATE),
        max_items=batching.max_batch_items,
        ageing_s=batching.ageing_s,
    )
