"""The Sortformer engine against NeMo's own streaming inference, on a small model with random weights."""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nemo.collections.asr.parts.submodules.multi_head_attention import RelPositionMultiHeadAttention

from serve_app.diarization.sortformer import FAST_PATHS, SortformerEngine
from serve_app.diarization.sortformer_files import read_streaming
from serve_app.engine.lean_modules import LeanAttention
from serve_app.errors import EngineError, ModelUnavailable
from serve_app.model_source import bundled_model_path
from serve_app.window import FRAME_SAMPLES, Samples
from testing.random_models import SMALL_SORTFORMER, save_random_sortformer
from tools.sortformer import config

SIZES = SMALL_SORTFORMER
RECORDING_SAMPLES = [
    SIZES.chunk_len * FRAME_SAMPLES * 6,
    SIZES.chunk_len * FRAME_SAMPLES * 6 + 100,
    SIZES.chunk_len * FRAME_SAMPLES * 5 + 3 * FRAME_SAMPLES + 700,
    SIZES.chunk_len * FRAME_SAMPLES * 5 + 1,
    3000,
]
"""Whole chunks, a rest without a feature frame, a shorter last chunk, less than a chunk."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_sortformer(tmp_path_factory.mktemp("sortformer") / "random.nemo")


@pytest.fixture(scope="module")
def engine(path: Path) -> SortformerEngine:
    return SortformerEngine.load(path, device="cpu")


@pytest.fixture(scope="module")
def stock(path: Path) -> SortformerEngine:
    """With NeMo's modules."""
    return SortformerEngine.load(path, device="cpu", fast_paths="off")


def recording(length: int) -> Samples:
    """Noise whose level and colour change, so that the model has something to tell apart."""
    random = np.random.default_rng(0)
    level = np.repeat(random.uniform(0, 6000, -(-length // 4000)), 4000)[:length]
    return np.asarray(level * np.tanh(random.standard_normal(length).cumsum() / 30), np.int16)


def steps(engine: SortformerEngine, samples: Samples) -> tuple[list[np.ndarray], list[bytes]]:
    """The recording chunk by chunk, as the server cuts it."""
    shape, state = engine.shape, None
    found: list[np.ndarray] = []
    states: list[bytes] = []
    for start in range(0, len(samples), shape.chunk_samples):
        end = min(start + shape.chunk_samples, len(samples))
        first, last = max(0, start - shape.left_samples), min(len(samples), end + shape.right_samples)
        probabilities, state = engine.step(samples[first:last], start - first, last - end, state)
        found.append(probabilities)
        states.append(state)
    return found, states


def whole(engine: SortformerEngine, samples: Samples) -> np.ndarray:
    """NeMo's own streaming inference over the whole recording, which has its state in tensors."""
    model: Any = engine._model
    wave = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
    with torch.inference_mode():
        features, count = model.preprocessor(input_signal=wave, length=torch.tensor([len(samples)]))
        return np.asarray(model.forward_streaming(features[:, :, : int(count.max())], count)[0].numpy())


@pytest.mark.parametrize("length", RECORDING_SAMPLES)
def test_chunks_with_the_state_as_bytes_are_nemos_own_streaming(
    engine: SortformerEngine, stock: SortformerEngine, length: int
) -> None:
    samples = recording(length)
    found, states = steps(engine, samples)
    expected = whole(stock, samples)
    together = np.concatenate(found).astype(np.float32)
    assert len(together) == -(-length // FRAME_SAMPLES)
    assert np.abs(together[: len(expected)] - expected).max() < 1e-3
    assert not together[len(expected) :].any()
    assert expected.std(0).max() > 0.05, "the model says the same everywhere, so the test would see nothing"
    assert max(map(len, states)) < 1_000_000


def test_equal_inputs_give_equal_bytes_on_another_replica(engine: SortformerEngine, path: Path) -> None:
    samples = recording(RECORDING_SAMPLES[0])
    other = SortformerEngine.load(path, device="cpu")
    assert steps(engine, samples)[1] == steps(other, samples)[1]


def test_the_fast_paths_of_an_encoder_are_used(engine: SortformerEngine, stock: SortformerEngine) -> None:
    assert engine.info.fast_paths == FAST_PATHS
    for used, kind in ((engine, LeanAttention), (stock, RelPositionMultiHeadAttention)):
        assert all(type(layer.self_attn) is kind for layer in used._model.encoder.layers)


def test_in_bf16_it_finds_the_same_and_continues_the_same_state(engine: SortformerEngine, path: Path) -> None:
    other = SortformerEngine.load(path, device="cpu", precision="bf16")
    assert other.info.precision == "bf16"
    assert next(other._model.transformer_encoder.parameters()).dtype == torch.bfloat16
    samples = recording(RECORDING_SAMPLES[0])
    (found, states), (expected, expected_states) = steps(other, samples), steps(engine, samples)
    assert [len(state) for state in states] == [len(state) for state in expected_states]
    rounded = torch.from_numpy(found[0].astype(np.float32))
    assert not torch.equal(rounded, rounded.bfloat16().float())
    difference = np.abs(np.concatenate(found).astype(np.float32) - np.concatenate(expected))
    # Which frames are remembered may hang on a rounding; the first chunk hangs on nothing before it.
    assert difference[: len(found[0])].mean() < 0.02
    assert difference.mean() < 0.05
    chunk = samples[: engine.shape.chunk_samples]
    one, two = (each.step(chunk, 0, 0, states[-1])[0].astype(np.float32) for each in (engine, other))
    assert np.abs(one - two).mean() < 0.02


def test_the_state_matters(engine: SortformerEngine) -> None:
    samples = recording(RECORDING_SAMPLES[0])
    _, states = steps(engine, samples)
    chunk = samples[: engine.shape.chunk_samples]
    fresh, _ = engine.step(chunk, 0, 0, None)
    later, _ = engine.step(chunk, 0, 0, states[-1])
    assert np.abs(fresh.astype(np.float32) - later).max() > 0.01


def test_state_of_another_model_is_refused(engine: SortformerEngine, tmp_path: Path) -> None:
    sizes = replace(SIZES, spkcache_len=SIZES.spkcache_len + 1)
    other = SortformerEngine.load(save_random_sortformer(tmp_path / "other.nemo", sizes), device="cpu")
    chunk = recording(engine.shape.chunk_samples)
    _, state = engine.step(chunk, 0, 0, None)
    with pytest.raises(EngineError, match="another model"):
        other.step(chunk, 0, 0, state)


def test_a_recording_goes_on_with_its_chunks_on_a_replica_that_asks_for_others(engine: SortformerEngine, path: Path) -> None:
    """As while a changed configuration is deployed."""
    other = SortformerEngine.load(path, device="cpu", chunk_s=4.0)
    chunk = recording(engine.shape.chunk_samples)
    _, state = engine.step(chunk, 0, 0, None)
    assert np.array_equal(engine.step(chunk, 0, 0, state)[0], other.step(chunk, 0, 0, state)[0])


@pytest.mark.parametrize(("chunk_s", "chunk_len"), [(None, 20), (4.0, 50), (0.48, 6)])
def test_the_length_of_chunks(path: Path, chunk_s: float | None, chunk_len: int) -> None:
    assert read_streaming(path, chunk_s) == replace(read_streaming(path), chunk_len=chunk_len)
    assert SortformerEngine.load(path, device="cpu", chunk_s=chunk_s).shape.chunk_samples == chunk_len * FRAME_SAMPLES


def test_longer_chunks_are_nemos_own_streaming_too(path: Path) -> None:
    samples = recording(RECORDING_SAMPLES[1])
    found, _ = steps(SortformerEngine.load(path, device="cpu", chunk_s=4.0), samples)
    expected = whole(SortformerEngine.load(path, device="cpu", chunk_s=4.0, fast_paths="off"), samples)
    assert np.abs(np.concatenate(found)[: len(expected)].astype(np.float32) - expected).max() < 1e-3


def test_speech_recognisers_are_refused_by_name() -> None:
    with pytest.raises(ModelUnavailable, match="EncDecRNNTBPEModel"):
        SortformerEngine.load(bundled_model_path(), device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streaming_mode": False}, "offline Sortformer"),
        ({"preprocessor": {"normalize": "per_feature"}}, "normalised over the whole recording"),
        ({"encoder": {"subsampling_factor": 4}}, "frames of 640 samples"),
        ({"target": None}, "no class of NeMo"),
    ],
)
def test_other_sortformers_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    changed = {"target": "nemo.collections.asr.models.sortformer_diar_models.SortformerEncLabelModel", **config(SIZES)}
    for name, value in change.items():
        changed[name] = {**changed[name], **value} if isinstance(value, dict) else value
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(changed))
    with tarfile.open(tmp_path / "other.nemo", "w:") as archive:
        archive.add(tmp_path / "model_config.yaml", arcname="./model_config.yaml")
    with pytest.raises(ModelUnavailable, match=message):
        SortformerEngine.load(tmp_path / "other.nemo", device="cpu")
