"""Sizes of batches of an engine whose costs are known."""

import pytest

from serve_app.engine.batch_sizes import measure_sizes
from serve_app.engine.simulated import SimulatedEngine
from serve_app.settings import BatchingSettings, SimulationSettings
from serve_app.window import SAMPLE_RATE

WINDOW = 8 * SAMPLE_RATE


@pytest.mark.parametrize(("step_s", "per_audio_s"), [(0.0, 0.01), (0.0, 0.0), (0.05, 0.0), (0.05, 0.01)])
def test_every_cost_has_sizes_and_a_rate(step_s: float, per_audio_s: float) -> None:
    engine = SimulatedEngine(SimulationSettings(step_s=step_s, seconds_per_audio_s=per_audio_s))
    sizes = measure_sizes(engine, BatchingSettings(), WINDOW, "simulated")
    assert sizes.rate.value > 0
    if per_audio_s:
        assert sizes.rate.value <= 1 / per_audio_s
