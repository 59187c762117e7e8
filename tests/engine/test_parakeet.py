"""The engine on the bundled model: it gives the same tokens and times as NeMo, in every batch."""

import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from serve_app.engine.decoder import DecodedBatch
from serve_app.engine.gpu_memory import MemoryOfBatches
from serve_app.engine.parakeet import LENGTHS_PER_OCTAVE, Features, ParakeetEngine, padded_samples
from serve_app.errors import EngineBroken, EngineOutOfMemory, ModelUnavailable
from serve_app.model_source import bundled_model_path
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Keywords, Samples
from testing.accuracy import judge, recognise
from testing.cuda_errors import NeMoCUDAPythonException
from testing.digit_strings import DigitString, to_int16


def times(tokens: Sequence[Token]) -> list[tuple[int, int, int]]:
    return [(token.token_id, token.start_sample, token.end_sample) for token in tokens]


@pytest.fixture(scope="module")
def windows(strings: list[DigitString]) -> list[Samples]:
    return [to_int16(string.samples) for string in strings]


@pytest.fixture(scope="module")
def alone(engine: ParakeetEngine, windows: list[Samples]) -> list[list[Token]]:
    return [engine.transcribe([window])[0] for window in windows]


def test_it_recognises_speech(engine: ParakeetEngine, strings: list[DigitString]) -> None:
    figures = judge(strings, recognise(engine, strings))
    assert figures.word_error_rate <= 0.03
    assert figures.start_error_s <= 0.08
    assert figures.end_error_s <= 0.12


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_tokens_and_times_are_those_of_nemos_transcribe(windows: list[Samples], alone: list[list[Token]], tmp_path: Path) -> None:
    """NeMo transcribes files, one per batch: without CUDA graphs its durations are wrong in larger batches."""
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(bundled_model_path()), map_location="cpu")
    paths = [str(tmp_path / f"{i}.wav") for i in range(len(windows))]
    for path, window in zip(paths, windows, strict=True):
        sf.write(path, window, SAMPLE_RATE)
    hypotheses = model.transcribe(paths, timestamps=True, batch_size=1, verbose=False)
    for hypothesis, window, tokens in zip(hypotheses, windows, alone, strict=True):
        assert len(window) >= SAMPLE_RATE, "NeMo pads shorter clips on both sides, which moves its times"
        characters = hypothesis.timestamp["char"]
        theirs = [(c["start_offset"] * FRAME_SAMPLES, c["end_offset"] * FRAME_SAMPLES) for c in characters]
        assert hypothesis.y_sequence.tolist() == [token.token_id for token in tokens]
        assert theirs == [(token.start_sample, token.end_sample) for token in tokens]


def test_a_mixed_batch_changes_no_token_and_no_time(
    engine: ParakeetEngine, windows: list[Samples], alone: list[list[Token]]
) -> None:
    together = engine.transcribe(windows)
    assert [times(tokens) for tokens in together] == [times(tokens) for tokens in alone]
    for batched, single in zip(together, alone, strict=True):
        assert [t.confidence for t in batched] == pytest.approx([t.confidence for t in single], abs=1e-3)


def test_durations_differ(alone: list[list[Token]]) -> None:
    """With one duration for all tokens, the comparison with NeMo would prove little."""
    durations = {token.end_sample - token.start_sample for tokens in alone for token in tokens}
    assert len(durations) >= 4


def test_confidences_are_probabilities_that_tell_speech_from_noise(engine: ParakeetEngine, alone: list[list[Token]]) -> None:
    """The noise is modulated at the rate of syllables: the model gives no tokens at all for steady noise."""
    modulation = 1 + np.sin(2 * np.pi * 4.0 * np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE)
    rng = np.random.default_rng(0)
    noise = [(3000 * modulation * rng.standard_normal(len(modulation))).clip(-32768, 32767).astype(np.int16) for _ in range(4)]
    in_speech = [token.confidence for tokens in alone for token in tokens]
    in_noise = [token.confidence for tokens in engine.transcribe(noise) for token in tokens]
    assert all(0 < c <= 1 for c in in_speech + in_noise)
    assert np.mean(in_speech) > 0.8
    assert len(in_noise) >= 20
    assert np.mean(in_noise) < np.mean(in_speech) - 0.1


def test_punctuation_has_the_end_time_of_its_word(alone: list[list[Token]]) -> None:
    for tokens in alone:
        for previous, token in pairwise(tokens):
            if token.piece == ".":
                assert token.start_sample == token.end_sample == previous.end_sample


def test_batches_have_few_different_lengths() -> None:
    lengths = [padded_samples(samples) for samples in range(SAMPLE_RATE // 2, 60 * SAMPLE_RATE, 97)]
    assert all(
        0 <= padded - samples < max(1280, 0.032 * samples)
        for padded, samples in zip(lengths, range(8_000, 960_000, 97), strict=True)
    )
    assert lengths == sorted(lengths)
    assert len({length for length in lengths if length > 30 * SAMPLE_RATE}) <= 1.1 * LENGTHS_PER_OCTAVE


def test_warm_up_and_measurements_do_not_change_the_transcripts(
    engine: ParakeetEngine, windows: list[Samples], alone: list[list[Token]]
) -> None:
    engine.warm_up(8 * SAMPLE_RATE, max_items=5)
    cost = engine.measure_cost(8.0, max_windows=5)
    assert cost.step_s >= 0 < cost.per_audio_s
    assert engine.transcribe(windows[:1]) == alone[:1]


def test_on_a_cpu_no_batch_is_too_large_for_the_memory(engine: ParakeetEngine) -> None:
    engine.measure_cost(8.0, max_windows=2)
    assert engine.fitting_audio_s() == math.inf


def test_what_fits_is_judged_by_the_peak_of_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of torch's memory counters. The replica may use half of a GPU of 8 GB, and its model has 1 GB."""
    counters = {
        "reset_peak_memory_stats": None,
        "memory_allocated": 1.0e9,
        "memory_reserved": 2.0e9,
        "max_memory_allocated": 1.5e9,
        "mem_get_info": (5.0e9, 8.0e9),
        "get_per_process_memory_fraction": 0.5,
    }
    for name, value in counters.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    assert MemoryOfBatches().fitting_batches() == pytest.approx(0.8 * (4.0 - 2.0 + 2.0 - 1.0) / 0.5)


def test_the_measurement_ends_where_memory_does(engine: ParakeetEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not measure batches that were split."""
    sizes: list[int] = []
    run = engine._run

    def run_at_most_two(features: Features, keywords: Any) -> DecodedBatch:
        sizes.append(len(features.values))
        if len(features.values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(features, keywords)

    monkeypatch.setattr(engine, "_run", run_at_most_two)
    engine.measure_cost(1.0, max_windows=8)
    assert (max(sizes), sizes[-1]) == (4, 4)
    monkeypatch.setattr(engine, "_run", lambda *_: run_at_most_two(Features(torch.zeros(3), None, None), ()))
    with pytest.raises(EngineOutOfMemory):
        engine.measure_cost(1.0, max_windows=8)


def test_a_window_whose_features_found_no_memory_beside_a_batch_is_prepared_again(
    engine: ParakeetEngine, windows: list[Samples], alone: list[list[Token]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_features", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))
        prepared = engine.prepare(windows[:1])
    assert [columns.tokens() for columns in engine.recognise(prepared)] == alone[:1]


@pytest.mark.parametrize("samples", [1, 100, SAMPLE_RATE // 10])
def test_a_window_may_have_very_few_samples(engine: ParakeetEngine, samples: int) -> None:
    window = np.full(samples, 1000, dtype=np.int16)
    assert len(engine.transcribe([window])) == 1


def test_digital_silence_gives_no_tokens(engine: ParakeetEngine, windows: list[Samples], alone: list[list[Token]]) -> None:
    silence = np.zeros(5 * SAMPLE_RATE, dtype=np.int16)
    assert engine.transcribe([silence, windows[3], silence[:1]]) == [[], engine.transcribe([windows[3]])[0], []]


def test_quiet_noise_gives_no_tokens(engine: ParakeetEngine) -> None:
    noise = np.random.default_rng(0).normal(0, 30, 5 * SAMPLE_RATE).astype(np.int16)
    assert engine.transcribe([noise]) == [[]]


def test_a_batch_may_be_prepared_by_another_thread_while_one_is_recognised(
    engine: ParakeetEngine, windows: list[Samples], alone: list[list[Token]]
) -> None:
    halves = (slice(None, 6), slice(6, None))
    with ThreadPoolExecutor(1) as thread:
        for _ in range(3):
            batches = [thread.submit(engine.prepare, windows[half]) for half in halves]
            columns = [engine.recognise(batch.result()) for batch in batches]
            assert [times(c.tokens()) for half in columns for c in half] == [times(tokens) for tokens in alone]


class FailingModel(ParakeetEngine):
    """Raises `error` for batches of more than `max_windows` windows, at the stage of that name."""

    def __init__(self, engine: ParakeetEngine, max_windows: int, error: Exception, stage: str = "run") -> None:
        self.__dict__.update(engine.__dict__)
        self._max_windows, self._error, self._stage = max_windows, error, stage
        self.batches: list[int] = []

    def _fail(self, stage: str, windows: int) -> None:
        if stage == self._stage:
            self.batches.append(windows)
            if windows > self._max_windows:
                raise self._error

    def _features(self, windows: Sequence[Samples]) -> Features:
        self._fail("prepare", len(windows))
        return super()._features(windows)

    def _run(self, features: Features, keywords: Sequence[Keywords]) -> DecodedBatch:
        self._fail("run", len(keywords))
        return super()._run(features, keywords)


@pytest.mark.parametrize("stage", ["prepare", "run"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_batch(
    engine: ParakeetEngine, windows: list[Samples], alone: list[list[Token]], error: Exception, stage: str
) -> None:
    failing = FailingModel(engine, 2, error, stage)
    results = failing.transcribe(windows[:5])
    assert [times(tokens) for tokens in results] == [times(tokens) for tokens in alone[:5]]
    # Features are computed twice: at first, another batch may have taken the memory.
    assert failing.batches == ([5, 5, 2, 3, 3, 1, 2] if stage == "prepare" else [5, 2, 3, 1, 2])


def test_a_single_window_too_large_is_an_error(engine: ParakeetEngine, windows: list[Samples]) -> None:
    with pytest.raises(EngineOutOfMemory, match="does not fit"):
        FailingModel(engine, 0, torch.OutOfMemoryError("no memory")).transcribe(windows[:1])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        torch.AcceleratorError("device-side assert"),
        NeMoCUDAPythonException("Cuda Runtime Error: cudaErrorIllegalAddress"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stage", ["prepare", "run"])
def test_a_cuda_error_means_the_engine_is_broken(
    engine: ParakeetEngine, windows: list[Samples], error: Exception, stage: str
) -> None:
    with pytest.raises(EngineBroken):
        FailingModel(engine, 0, error, stage).transcribe(windows[:2])


def test_a_failed_capture_for_lack_of_memory_is_not_retried_in_halves(engine: ParakeetEngine, windows: list[Samples]) -> None:
    """A capture for fewer windows would only be followed by the next one."""
    error = EngineBroken("the decoder's CUDA graphs could not be captured: CUDA out of memory. Tried to allocate 20.00 MiB.")
    failing = FailingModel(engine, 0, error)
    with pytest.raises(EngineBroken):
        failing.transcribe(windows[:4])
    assert failing.batches == [4]


def test_a_file_that_is_not_a_model_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelUnavailable, match=r"broken\.nemo"):
        ParakeetEngine.load(path)


def test_features_stay_in_fp32(engine: ParakeetEngine, windows: list[Samples]) -> None:
    """Rounded to bf16, the window and the filterbank of the features leak between frequencies."""
    rounded: Any = ParakeetEngine.load(bundled_model_path(), device="cpu", precision="bf16")
    assert next(rounded._model.encoder.parameters()).dtype == torch.bfloat16
    assert next(rounded._model.joint.parameters()).dtype == torch.bfloat16
    audio = torch.from_numpy(windows[3])[None] / 32768.0
    lengths = torch.tensor([len(windows[3])])
    features, _ = rounded._model.preprocessor(input_signal=audio, length=lengths)
    exact, _ = engine._model.preprocessor(input_signal=audio, length=lengths)
    assert features.dtype == torch.float32
    assert torch.equal(features, exact)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would load the model onto the GPU")
def test_several_replicas_of_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for share in (1.0, 0.25):
        # There is no GPU that it could be loaded onto.
        with pytest.raises((RuntimeError, AssertionError), match="CUDA"):
            ParakeetEngine.load(bundled_model_path(), device="cuda", gpu_share=share)
    assert shares == [0.25]


def test_a_small_model_stays_in_fp32_on_a_cpu() -> None:
    assert ParakeetEngine.load(bundled_model_path(), device="cpu").info.precision == "fp32"


def test_bf16_recognises_the_same_words(strings: list[DigitString]) -> None:
    engine = ParakeetEngine.load(bundled_model_path(), device="cpu", precision="bf16")
    assert engine.info.precision == "bf16"
    assert judge(strings, recognise(engine, strings)).word_error_rate <= 0.05


@pytest.mark.slow
def test_nemo_prints_nothing_while_it_loads_and_transcribes() -> None:
    """In a fresh process, like a replica: the only line of output is the engine's own log line."""
    program = (
        "import logging, sys, numpy as np; logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "from serve_app.engine.parakeet import ParakeetEngine; from serve_app.model_source import bundled_model_path\n"
        "engine = ParakeetEngine.load(bundled_model_path(), device='cpu')\n"
        "engine.transcribe([np.arange(32000, dtype=np.int16)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("loaded digits.nemo")


def test_the_level_of_the_root_logger_is_restored(engine: ParakeetEngine) -> None:
    assert logging.getLogger().level != logging.CRITICAL
