"""Limits of a replica's batches."""

import pytest

from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.batch_policy import (
    CPU_BATCH_AUDIO_S,
    GPU_BATCH_AUDIO_S,
    MAX_BATCH_AUDIO_S,
    batch_limits,
    max_batch_audio_s,
    max_batch_windows,
)
from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings

COST = BatchCost(step_s=0.03, per_audio_s=0.001)


def test_where_nothing_was_measured_the_default_depends_on_the_device() -> None:
    assert max_batch_audio_s(BatchingSettings(), on_gpu=True) == GPU_BATCH_AUDIO_S
    assert max_batch_audio_s(BatchingSettings(), on_gpu=False) == CPU_BATCH_AUDIO_S


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_was_measured_replaces_the_default_and_the_setting_both(on_gpu: bool) -> None:
    assert max_batch_audio_s(BatchingSettings(), on_gpu=on_gpu, cost=COST) == pytest.approx(1_000)
    assert max_batch_audio_s(BatchingSettings(max_batch_audio_s=45.0), on_gpu=on_gpu, cost=COST) == 45.0


def test_no_batch_is_larger_than_memory_or_all_bounds() -> None:
    batching = BatchingSettings(max_batch_audio_s=500)
    assert max_batch_audio_s(batching, on_gpu=True, cost=COST, fits_audio_s=300) == 300
    assert max_batch_audio_s(BatchingSettings(), on_gpu=True, cost=BatchCost(0.03, 0.0)) == MAX_BATCH_AUDIO_S


@pytest.mark.parametrize(
    ("audio_s", "items", "window_s", "windows"),
    [
        pytest.param(100.0, 64, 30.0, 3, id="limited by audio"),
        pytest.param(90.0, 64, 30.0, 3, id="exact multiple"),
        pytest.param(600.0, 8, 30.0, 8, id="limited by items"),
        pytest.param(10.0, 64, 30.0, 1, id="a window longer than the limit"),
    ],
)
def test_windows_per_batch(audio_s: float, items: int, window_s: float, windows: int) -> None:
    assert max_batch_windows(BatchingSettings(max_batch_items=items), window_s, audio_s) == windows


def test_limits_of_the_queue_are_in_samples() -> None:
    batching = BatchingSettings(max_batch_items=7, ageing_s=2.0)
    expected = BatchLimits(max_samples=24_000, max_live_samples=24_000, max_items=7, ageing_s=2.0)
    assert batch_limits(batching, 1.5) == expected


@pytest.mark.parametrize(("target_step_s", "live_audio_s"), [(0.13, 100), (0.02, 0), (5.0, 1_000)])
def test_with_live_streams_a_batch_takes_the_target_time(target_step_s: float, live_audio_s: float) -> None:
    limits = batch_limits(BatchingSettings(target_step_s=target_step_s), 1_000.0, COST)
    assert (limits.max_samples, limits.max_live_samples) == (16_000_000, 16_000 * live_audio_s)
