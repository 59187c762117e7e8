"""Features by the fast path `features`: those of NeMo's preprocessor."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor
from torch import Tensor

from serve_app.engine.fast_paths import MAX_FEATURES_ERROR, apply_fast_paths
from serve_app.engine.lean_features import LeanFeatures
from serve_app.engine.lean_modules import Unsuitable
from tests.engine.test_fast_paths import make_model

LENGTHS = [(1_600,), (15_999,), (16_001, 16_000), (48_123, 30_007, 1_280), (480_000, 32_000)]
"""Of the windows of a batch, samples."""


def make_preprocessor(**changes: Any) -> Any:
    return AudioToMelSpectrogramPreprocessor(**({"features": 80, "dither": 0.0, "pad_to": 0} | changes))


def noise(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Speech-like levels: frames differ by 40 dB, and the first are digital silence."""
    generator = torch.Generator().manual_seed(0)
    audio = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(audio, lengths, strict=True):
        level = 10 ** (-2 * torch.rand(length // 1_000 + 1, generator=generator)).repeat_interleave(1_000)[:length]
        row[:length] = 0.3 * level * torch.randn(length, generator=generator)
        row[: length // 10] = 0.0
    return audio, torch.tensor(lengths)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"features": 128}, {"preemph": None}, {"window_size": 0.02, "n_fft": 1024}], ids=str)
def test_they_are_those_of_nemo(changes: dict[str, Any], lengths: tuple[int, ...]) -> None:
    stock = make_preprocessor(**changes).featurizer
    audio, samples = noise(lengths)
    with torch.inference_mode():
        (expected, counts), (features, frames) = stock(audio, samples), LeanFeatures(stock)(audio, samples)
    assert torch.equal(frames, counts)
    assert features.shape == expected.shape
    for row, other, count in zip(features, expected, frames.tolist(), strict=True):
        assert float((row - other).norm() / other.norm()) < MAX_FEATURES_ERROR / 10
        assert not row[:, count:].any()


def test_those_of_a_window_do_not_depend_on_its_batch() -> None:
    lean = LeanFeatures(make_preprocessor().featurizer)
    audio, samples = noise((32_000, 20_000))
    with torch.inference_mode():
        together, frames = lean(audio, samples)
        alone, _ = lean(audio[1:, :20_000], samples[1:])
    assert torch.allclose(together[1, :, : frames[1]], alone[0, :, : frames[1]], atol=1e-4)


def test_the_audio_stays_as_it_is() -> None:
    audio, samples = noise((32_000,))
    before = audio.clone()
    LeanFeatures(make_preprocessor().featurizer)(audio, samples)
    assert torch.equal(audio, before)


@pytest.mark.parametrize(
    "changes",
    [
        {"mag_power": 1.0},
        {"normalize": "all_features"},
        {"log": False},
        {"log_zero_guard_type": "clamp"},
        {"frame_splicing": 2},
        {"exact_pad": True},
        {"pad_to": 16},
        {"pad_value": -1.0},
        {"window": "none"},
    ],
    ids=str,
)
def test_other_features_are_left_alone(changes: dict[str, Any]) -> None:
    with pytest.raises(Unsuitable):
        LeanFeatures(make_preprocessor(**changes).featurizer)


def test_wrong_features_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LeanFeatures.forward

    def slightly_wrong(self: LeanFeatures, *arguments: Any) -> tuple[Tensor, Tensor]:
        features, frames = forward(self, *arguments)
        return 1.001 * features, frames

    monkeypatch.setattr(LeanFeatures, "forward", slightly_wrong)
    encoder = make_model().encoder
    model = SimpleNamespace(encoder=encoder, preprocessor=make_preprocessor())
    stock = model.preprocessor.featurizer
    paths = apply_fast_paths(model, ("features",))
    assert paths.used == ()
    assert paths.left_out == ("features: the features' error is 0.001; the tolerance is 0.0001",)
    assert model.preprocessor.featurizer is stock
