"""Limits of a replica's batches."""

import pytest

from serve_app.engine.batch_policy import (
    CPU_BATCH_AUDIO_S,
    GPU_BATCH_AUDIO_S,
    batch_limits,
    max_batch_audio_s,
    max_batch_windows,
)
from serve_app.engine.batch_queue import BatchLimits
from serve_app.settings import BatchingSettings


def test_the_default_depends_on_the_device() -> None:
    assert max_batch_audio_s(BatchingSettings(), on_gpu=True) == GPU_BATCH_AUDIO_S
    assert max_batch_audio_s(BatchingSettings(), on_gpu=False) == CPU_BATCH_AUDIO_S


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_setting_replaces_the_default(on_gpu: bool) -> None:
    assert max_batch_audio_s(BatchingSettings(max_batch_audio_s=45.0), on_gpu=on_gpu) == 45.0


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
    batching = BatchingSettings(max_batch_audio_s=audio_s, max_batch_items=items)
    assert max_batch_windows(batching, window_s, on_gpu=False) == windows


def test_limits_of_the_queue_are_in_samples() -> None:
    batching = BatchingSettings(max_batch_audio_s=1.5, max_batch_items=7, ageing_s=2.0)
    assert batch_limits(batching, on_gpu=True) == BatchLimits(max_samples=24_000, max_items=7, ageing_s=2.0)
