"""Who speaks when: turns from probabilities, and Silero's model on real and synthetic sound."""

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from serve_app.live.endpointing import VAD_FRAME_SAMPLES, Endpointer, Endpointing, VadEvent
from serve_app.live.vad import SileroModel, _model, _run, _Stream
from serve_app.window import SAMPLE_RATE, Samples
from testing.digit_strings import DigitString, to_int16

SILENCE = np.zeros(3 * SAMPLE_RATE, np.int16)


@pytest.fixture(autouse=True)
def batches_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here audio comes much faster than it is spoken."""
    monkeypatch.setattr("serve_app.live.vad.MIN_BATCH_INTERVAL_S", 0.0)
    monkeypatch.setattr("serve_app.live.vad.MAX_BATCH_SHARE", 1.0)


def test_an_utterance_ends_after_the_silence() -> None:
    endpointer = Endpointer(Endpointing(3 * VAD_FRAME_SAMPLES / SAMPLE_RATE))
    probabilities = [0.1, 0.9, 0.8, 0.4, 0.1, 0.9, 0.1, 0.2, 0.1, 0.1]
    assert endpointer.push(probabilities[:4]) == [VadEvent(True, VAD_FRAME_SAMPLES, 2 * VAD_FRAME_SAMPLES)]
    assert endpointer.push(probabilities[4:]) == [VadEvent(False, 6 * VAD_FRAME_SAMPLES, 9 * VAD_FRAME_SAMPLES)]


def test_what_is_doubtful_goes_on_but_does_not_begin() -> None:
    endpointer = Endpointer(Endpointing(VAD_FRAME_SAMPLES / SAMPLE_RATE))
    assert endpointer.push([0.4, 0.45, 0.4]) == []
    assert endpointer.push([0.6, 0.4, 0.4]) == [VadEvent(True, 3 * VAD_FRAME_SAMPLES, 4 * VAD_FRAME_SAMPLES)]


def test_without_an_end() -> None:
    endpointer = Endpointer(Endpointing(math.inf))
    assert endpointer.push([0.9, *[0.0] * 10_000]) == [VadEvent(True, 0, VAD_FRAME_SAMPLES)]


def test_a_threshold_of_ones_own() -> None:
    endpointer = Endpointer(Endpointing(VAD_FRAME_SAMPLES / SAMPLE_RATE, threshold=0.9))
    assert endpointer.push([0.89, 0.91, 0.76, 0.74, 0.89]) == [
        VadEvent(True, VAD_FRAME_SAMPLES, 2 * VAD_FRAME_SAMPLES),
        VadEvent(False, 3 * VAD_FRAME_SAMPLES, 4 * VAD_FRAME_SAMPLES),
    ]


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.15])
def test_speech_ends_at_any_threshold(threshold: float) -> None:
    endpointer = Endpointer(Endpointing(VAD_FRAME_SAMPLES / SAMPLE_RATE, threshold))
    assert [event.is_speech for event in endpointer.push([0.9, 0.005, 0.005])] == [True, False]


def test_the_newest_frame_that_may_hold_speech() -> None:
    endpointer = Endpointer(Endpointing(math.inf, threshold=0.9))
    assert endpointer.possible_speech_until == 0
    assert endpointer.push([0.05, 0.12, 0.05]) == []
    assert endpointer.possible_speech_until == 2 * VAD_FRAME_SAMPLES


def turns_of(samples: Samples, block: int = 1_600) -> list[VadEvent]:
    async def run() -> list[VadEvent]:
        voice = SileroModel().detector(Endpointing(0.8))
        return [turn for start in range(0, len(samples), block) for turn in await voice.push(samples[start : start + block])]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def spoken(strings: list[DigitString]) -> Samples:
    return np.concatenate([SILENCE, to_int16(strings[6].samples), SILENCE, to_int16(strings[4].samples), SILENCE])


def test_speech_is_found_where_it_is(spoken: Samples, strings: list[DigitString]) -> None:
    turns = turns_of(spoken)
    assert [turn.is_speech for turn in turns][:2] == [True, False]
    first = 3.0 + strings[6].words[0].start_sample / SAMPLE_RATE
    assert turns[0].sample / SAMPLE_RATE == pytest.approx(first, abs=0.5)
    assert turns[-1].is_speech is False
    last = (6 * SAMPLE_RATE + len(strings[6].samples) + strings[4].words[-1].end_sample) / SAMPLE_RATE
    assert turns[-1].sample / SAMPLE_RATE == pytest.approx(last, abs=0.5)


def test_how_the_audio_is_cut_does_not_matter(spoken: Samples) -> None:
    assert turns_of(spoken, 160) == turns_of(spoken, 1_600) == turns_of(spoken, 50_000)


def test_silence_and_noise_are_no_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 300, 5 * SAMPLE_RATE).astype(np.int16)
    assert turns_of(np.zeros(5 * SAMPLE_RATE, np.int16)) == []
    assert turns_of(noise) == []


async def test_a_failure_reaches_every_stream_and_the_next_batch_runs(spoken: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SileroModel()
    detectors = [model.detector(Endpointing(0.8)) for _ in range(3)]
    with monkeypatch.context() as broken:
        broken.setattr("serve_app.live.vad._model", lambda: None)
        async with asyncio.timeout(60):
            results = await asyncio.gather(*(detector.push(spoken[:1_024]) for detector in detectors), return_exceptions=True)
    assert all(isinstance(result, AttributeError) for result in results)
    assert [event.is_speech for event in await model.detector(Endpointing(0.8)).push(spoken)][:2] == [True, False]


async def test_a_model_is_loaded_before_the_first_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    _model.cache_clear()
    model = SileroModel()
    model.load()
    assert _model.cache_info().currsize == 1
    with monkeypatch.context() as broken:
        broken.setattr("serve_app.live.vad._model", lambda: None)
        with pytest.raises(AttributeError):
            model.load()


async def test_a_model_whose_thread_is_gone_raises(spoken: Samples) -> None:
    model = SileroModel()
    model._thread.shutdown()
    async with asyncio.timeout(60):
        with pytest.raises(RuntimeError, match="shutdown"):
            await model.detector(Endpointing(0.8)).push(spoken[:1_024])


async def test_a_stream_that_left_costs_nothing(spoken: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def run(batch: Sequence[object]) -> list[list[float]]:
        batches.append(len(batch))
        return [[] for _ in batch]

    monkeypatch.setattr("serve_app.live.vad._run", run)
    model = SileroModel()
    pushes = [asyncio.ensure_future(model.detector(Endpointing(0.8)).push(spoken[:1_024])) for _ in range(3)]
    await asyncio.sleep(0)
    pushes[1].cancel()
    await asyncio.wait(pushes)
    assert sum(batches) == 2


def test_probabilities_are_those_of_the_whole_network() -> None:
    """The streams have different numbers of frames in every batch."""
    rng, network, streams = np.random.default_rng(1), _model(), [_Stream() for _ in range(3)]
    states, contexts = [torch.zeros(2, 1, 128)] * 3, [np.zeros(64, np.int16)] * 3
    for _ in range(10):
        batch = [(stream, rng.normal(0, 2_000, (rng.integers(1, 5), VAD_FRAME_SAMPLES)).astype(np.int16)) for stream in streams]
        found = _run(batch)
        for i, (_, frames) in enumerate(batch):
            for frame, probability in zip(frames, found[i], strict=True):
                samples = np.concatenate([contexts[i], frame])
                with torch.inference_mode():
                    out, states[i] = network(torch.from_numpy(samples[None]).float() / 32768.0, states[i])
                contexts[i] = frame[-64:]
                assert float(out) == pytest.approx(probability, abs=1e-4)


def test_streams_that_share_batches_do_not_disturb_each_other(spoken: Samples) -> None:
    async def follow(detector: SileroModel, samples: Samples, block: int) -> list[VadEvent]:
        voice = detector.detector(Endpointing(0.8))
        return [turn for start in range(0, len(samples), block) for turn in await voice.push(samples[start : start + block])]

    async def run() -> list[list[VadEvent]]:
        detector = SileroModel()
        noise = np.random.default_rng(0).normal(0, 300, len(spoken)).astype(np.int16)
        streams = [(spoken, 1_600), (noise, 320), (spoken, 4_000), (noise, 16_000), (spoken, 512)]
        return await asyncio.gather(*(follow(detector, samples, block) for samples, block in streams))

    alone = turns_of(spoken)
    assert asyncio.run(run()) == [alone, [], alone, [], alone]
