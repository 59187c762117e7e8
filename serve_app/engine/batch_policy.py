"""Limits of a replica's batches, from the settings and what a batch costs on its device. Pure."""

from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings
from serve_app.window import SAMPLE_RATE

MAX_STEP_S = 1.0
"""Maximum time that the audio of a batch takes, seconds, unless the settings say otherwise. A short request that arrives while a
batch runs waits for its end."""

MAX_BATCH_AUDIO_S = 4_000.0
"""Maximum of padded audio per batch, seconds, where nothing else bounds it."""

GPU_BATCH_AUDIO_S = 2_000.0
"""Padded audio per batch that is expected of a GPU before anything was measured, seconds."""

CPU_BATCH_AUDIO_S = 60.0
"""The same of a CPU."""


def expected_batch_audio_s(batching: BatchingSettings, *, on_gpu: bool) -> float:
    """Maximum padded audio per batch, seconds, as far as it is known before a model is loaded."""
    return batching.max_batch_audio_s or (GPU_BATCH_AUDIO_S if on_gpu else CPU_BATCH_AUDIO_S)


def max_batch_audio_s(batching: BatchingSettings, cost: BatchCost, fits_audio_s: float) -> float:
    """Maximum padded audio per batch, seconds: the setting; where that is 0, what is efficient on the device.

    `fits_audio_s`: what fits into the device's memory.
    """
    wanted_s = batching.max_batch_audio_s or min(cost.efficient_audio_s(), cost.audio_of(MAX_STEP_S))
    return min(wanted_s, fits_audio_s, MAX_BATCH_AUDIO_S)


def max_batch_windows(batching: BatchingSettings, window_s: float, max_audio_s: float) -> int:
    """Maximum number of windows of `window_s` seconds in a batch with at most `max_audio_s` of padded audio; at least 1."""
    return int(max(1, min(batching.max_batch_items, max_audio_s / window_s)))


def batch_limits(batching: BatchingSettings, max_audio_s: float, cost: BatchCost) -> BatchLimits:
    """The limits for a replica's batch queue."""
    # Of the time, only the part for the audio is bounded: where the fixed part alone takes long, small batches would be worst.
    live_audio_s = min(max_audio_s, cost.audio_of(batching.target_step_s))
    return BatchLimits(
        max_samples=round(max_audio_s * SAMPLE_RATE),
        max_live_samples=round(live_audio_s * SAMPLE_RATE),
        max_items=batching.max_batch_items,
        ageing_s=batching.ageing_s,
    )
