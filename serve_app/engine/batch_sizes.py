"""Sizes of a replica's batches, from what its engine measures when it is loaded."""

import logging
from dataclasses import dataclass

from serve_app.engine.batch_policy import batch_limits, max_batch_audio_s
from serve_app.engine.batch_queue import BatchLimits
from serve_app.engine.decode_rate import DecodeRate
from serve_app.engine.protocol import Engine
from serve_app.settings import BatchingSettings
from serve_app.window import SAMPLE_RATE

log = logging.getLogger("ray.serve")


MIN_FULL_S = 1.0
"""Audio from half of which on a batch counts for the rate, at least, seconds."""


@dataclass(frozen=True, slots=True)
class BatchSizes:
    max_audio_s: float
    """Maximum padded audio of a batch, seconds."""
    limits: BatchLimits
    rate: DecodeRate
    """Of the batches to come."""


def measure_sizes(engine: Engine, batching: BatchingSettings, max_window_samples: int, model: str) -> BatchSizes:
    """Decode some batches and choose the sizes; `model` is its name, for the log. On the engine's thread.

    An engine that cannot even do this raises, and counts as not loaded.
    """
    cost = engine.measure_cost(max_window_samples / SAMPLE_RATE, batching.max_batch_items)
    max_audio_s = max_batch_audio_s(batching, cost, engine.fitting_audio_s())
    log.info(
        "model %s: a batch takes %.1f ms, and %.2f ms for each second of audio; it has at most %.0f s",
        model,
        1000 * cost.step_s,
        1000 * cost.per_audio_s,
        max_audio_s,
    )
    limits = batch_limits(batching, max_audio_s, cost)
    # While there are live streams, no batch is larger. Where a batch has no fixed cost, it is that of a single window.
    full_audio_s = min(limits.max_live_samples, limits.max_items * max_window_samples) / SAMPLE_RATE
    return BatchSizes(max_audio_s, limits, DecodeRate(cost, max(full_audio_s, MIN_FULL_S)))
