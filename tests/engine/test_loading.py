"""Which models are loaded, and how; tests/engine/test_parakeet.py has the bundled one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import ModelUnavailable
from testing.random_models import save_random_model


def subsampled_4_times(config: dict[str, Any]) -> None:
    config["encoder"]["subsampling_factor"] = 4


def hop_of_20_ms(config: dict[str, Any]) -> None:
    config["preprocessor"]["window_stride"] = 0.02


def telephone_audio(config: dict[str, Any]) -> None:
    config["sample_rate"] = config["preprocessor"]["sample_rate"] = 8_000
    config["preprocessor"]["window_stride"] = 0.02


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (subsampled_4_times, "frames of 40 ms .4 times 160 samples."),
        (hop_of_20_ms, "frames of 160 ms"),
        (telephone_audio, "audio of 8000 Hz"),
    ],
)
def test_a_model_with_another_clock_is_refused(change: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path) -> None:
    """Its times would be wrong by a factor."""
    path = tmp_path / "model.nemo"
    save_random_model("tdt", path, change=change)
    with pytest.raises(ModelUnavailable, match=reason):
        ParakeetEngine.load(path, device="cpu")
