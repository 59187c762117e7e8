"""Limits of a replica's batches."""

import math

import pytest

from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.batch_policy import (
    CPU_BATCH_AUDIO_S,
    GPU_BATCH_AUDIO_S,
    MAX_BATCH_AUDIO_S,
    batch_limits,
    expected_batch_audio_s,
    max_batch_audio_s,
    max_batch_windows,
)
from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings
from serve_app.window import SAMPLE_RATE

COST = BatchCost(step_s=0.003, per_audio_s=0.001)


def test_before_anything_is_measured_the_device_decides() -> None:
    assert expected_batch_audio_s(BatchingSettings(), on_gpu=True) == GPU_BATCH_AUDIO_S
    assert expected_batch_audio_s(BatchingSettings(), on_gpu=False) == CPU_BATCH_AUDIO_S
    assert expected_batch_audio_s(BatchingSettings(max_batch_audio_s=45.0), on_gpu=False) == 45.0


def test_a_batch_is_as_large_as_is_efficient_or_as_the_setting_says() -> None:
    assert max_batch_audio_s(BatchingSettings(), COST, math.inf) == pytest.approx(100)
    assert max_batch_audio_s(BatchingSettings(max_batch_audio_s=450.0), COST, math.inf) == 450.0


def test_no_batch_takes_long_or_is_larger_than_memory_and_all_bounds() -> None:
    slow = BatchCost(step_s=1.0, per_audio_s=0.1)
    assert max_batch_audio_s(BatchingSettings(), slow, math.inf) == pytest.approx(10)
    assert max_batch_audio_s(BatchingSettings(max_batch_audio_s=500), COST, 300) == 300
    assert max_batch_audio_s(BatchingSettings(), BatchCost(0.03, 0.0), math.inf) == MAX_BATCH_AUDIO_S


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


@pytest.mark.parametrize(("target_step_s", "live_audio_s"), [(0.025, 25), (5.0, 100)])
def test_with_live_streams_the_audio_of_a_batch_takes_the_target_time(target_step_s: float, live_audio_s: int) -> None:
    batching = BatchingSettings(max_batch_items=7, ageing_s=2.0, target_step_s=target_step_s)
    assert batch_limits(batching, 100.0, COST) == BatchLimits(
        max_samples=100 * SAMPLE_RATE, max_live_samples=live_audio_s * SAMPLE_RATE, max_items=7, ageing_s=2.0
    )


def test_where_the_fixed_cost_is_above_the_target_live_windows_still_share_batches() -> None:
    assert (
        batch_limits(BatchingSettings(target_step_s=0.25), 1_000.0, BatchCost(0.3, 0.001)).max_live_samples == 250 * SAMPLE_RATE
    )
