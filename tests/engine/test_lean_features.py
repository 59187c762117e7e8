"""The lean features are those of NeMo's preprocessor, for all lengths; what they do not know is left to NeMo."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor
from torch import Tensor

from serve_app.engine import lean_features
from serve_app.engine.fast_paths import MAX_FEATURES_ERROR
from serve_app.engine.lean_features import LeanFeatures
from serve_app.engine.lean_modules import Unsuitable

HOP = 160
MANY_FRAMES = 10
LENGTHS = [
    *((samples,) for samples in (2 * HOP, 513, 799, 8_000, 16_001, 47_999, 330_000)),
    (8_000, 8_000),
    (32_000, 31_999, 17_000, 513, 2 * HOP),
    (400, 8_001, 161, 50),
]


def preprocessor(**changes: Any) -> Any:
    made = AudioToMelSpectrogramPreprocessor(
        **{"features": 80, "n_fft": 512, "window_size": 0.025, "dither": 0.0, "pad_to": 0} | changes
    )
    return made.eval()


def audio(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Noise that grows and fades, so that frames differ in level; the audio after a window is not silent."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(max(lengths))
    return torch.randn(len(lengths), max(lengths), generator=generator) * (0.101 + 0.1 * torch.sin(time / 700)), torch.tensor(
        lengths
    )


def features(module: Any, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        values, counts = module(input_signal=signal, length=lengths)
    return values, counts


def assert_same(values: Tensor, expected: Tensor, max_error: float = MAX_FEATURES_ERROR) -> None:
    assert values.shape == expected.shape
    assert (values - expected).norm() <= max_error * expected.norm()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_features_are_those_of_nemo(lengths: tuple[int, ...]) -> None:
    stock = preprocessor()
    values, counts = features(LeanFeatures(stock), *audio(lengths))
    expected, expected_counts = features(stock, *audio(lengths))
    assert torch.equal(counts, expected_counts)
    for row, expected_row, count in zip(values, expected, counts.tolist(), strict=True):
        # The deviation of a few frames may be near 0, and what is divided by it shows more of the rounding.
        assert_same(row, expected_row, MAX_FEATURES_ERROR if count >= MANY_FRAMES else 1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": 128},
        {"preemph": None},
        {"mag_power": 1.0},
        {"log_zero_guard_type": "clamp", "log_zero_guard_value": 2**-24},
        {"log_zero_guard_value": "eps"},
        {"window": "hamming", "window_size": 0.02},
        {"n_fft": 400, "highfreq": 7_000},
    ],
    ids=str,
)
def test_known_configurations(changes: dict[str, Any]) -> None:
    stock = preprocessor(**changes)
    lengths = (32_000, 17_001)
    assert_same(features(LeanFeatures(stock), *audio(lengths))[0], features(stock, *audio(lengths))[0])


def test_blocks_of_frames_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_features, "FRAMES_PER_BLOCK", 14)
    stock = preprocessor()
    for lengths in [(8_000,), (8_000, 5_001), (8_000,) * 20]:
        assert_same(features(LeanFeatures(stock), *audio(lengths))[0], features(stock, *audio(lengths))[0])


def test_a_window_in_a_mixed_batch_gets_what_it_gets_alone() -> None:
    lean = LeanFeatures(preprocessor())
    signal, lengths = audio((32_000, 9_999, 20_000))
    together, counts = features(lean, signal, lengths)
    for row, samples, count in zip(range(3), lengths.tolist(), counts.tolist(), strict=True):
        alone, _ = features(lean, signal[row : row + 1, :samples], lengths[row : row + 1])
        assert_same(together[row, :, :count], alone[0, :, :count])
        assert not together[row, :, count:].any()


@pytest.mark.parametrize("samples", [HOP, HOP + 1])
def test_a_single_frame_has_no_deviation(samples: int) -> None:
    stock = preprocessor()
    values, counts = features(LeanFeatures(stock), *audio((samples, 8_000)))
    assert counts.tolist() == [1, 50]
    assert not values[0].any()
    assert_same(values, features(stock, *audio((samples, 8_000)))[0])


def test_the_audio_is_not_changed() -> None:
    signal, lengths = audio((8_000, 5_000))
    before = signal.clone()
    features(LeanFeatures(preprocessor()), signal, lengths)
    assert torch.equal(signal, before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dither": 1e-5}, "there is dither"),
        ({"pad_to": 16}, "the features are padded"),
        ({"pad_value": 1.0}, "the features are padded"),
        ({"frame_splicing": 2}, "frames are spliced"),
        ({"mag_power": 3.0}, "the spectrum's power is neither 1 nor 2"),
        ({"normalize": "all_features"}, "the normalisation is not by feature"),
        ({"normalize": "NA"}, "the normalisation is not by feature"),
        ({"exact_pad": True}, "the STFT's frames are not centred"),
        ({"n_fft": 511}, "the STFT's frames are not centred"),
        ({"window": "none"}, "there is no window"),
        ({"log": False}, "there is no logarithm"),
        ({"nb_augmentation_prob": 0.5}, "the featurizer is set up for training"),
    ],
    ids=str,
)
def test_other_configurations_are_left_to_nemo(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsuitable, match=reason):
        LeanFeatures(preprocessor(**changes))


def test_another_preprocessor_is_left_to_nemo() -> None:
    with pytest.raises(Unsuitable, match="the preprocessor is another one"):
        LeanFeatures(torch.nn.Identity())
    with pytest.raises(Unsuitable, match="the features are not fp32"):
        LeanFeatures(preprocessor().half())
