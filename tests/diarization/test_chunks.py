"""Chunks: without overlap, with the audio around them, whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.diarization.chunks import Chunk, ChunkCutter
from serve_app.diarization.protocol import DiarizerShape
from serve_app.diarization.references import GAP_SAMPLES, KnownSpeaker, References
from serve_app.diarization.simulated import SHAPE, STATE, SimulatedDiarizer
from serve_app.errors import EngineError
from serve_app.settings import SimulationSettings
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.voices import tone

CHUNK, LEFT, RIGHT = 3 * FRAME_SAMPLES, FRAME_SAMPLES, 2 * FRAME_SAMPLES


def cut(samples: Samples, blocks: list[int]) -> list[Chunk]:
    cutter = ChunkCutter(DiarizerShape(CHUNK, LEFT, RIGHT, 4))
    chunks: list[Chunk] = []
    for block in np.split(samples, sorted(min(at, len(samples)) for at in blocks)):
        cutter.push(block)
        while (chunk := cutter.next()) is not None:
            assert len(chunk.samples) - chunk.left_samples == CHUNK + RIGHT
            chunks.append(chunk)
        assert cutter.waiting_samples == 0
    while (chunk := cutter.next(is_last=True)) is not None:
        chunks.append(chunk)
    return chunks


@given(st.integers(0, 20 * FRAME_SAMPLES), st.lists(st.integers(0, 20 * FRAME_SAMPLES), max_size=8))
def test_every_sample_is_in_one_chunk_with_its_context(length: int, blocks: list[int]) -> None:
    samples = np.arange(length).astype(np.int16)
    chunks, position = cut(samples, blocks), 0
    for chunk in chunks:
        first = max(0, position - LEFT)
        last = min(position + chunk.new_samples + RIGHT, length)
        assert (chunk.left_samples, chunk.right_samples) == (position - first, last - position - chunk.new_samples)
        assert np.array_equal(chunk.samples, samples[first:last])
        position += chunk.new_samples
        assert chunk.new_samples == CHUNK or position == length
    assert position == length


def test_a_cutter_holds_little() -> None:
    cutter = ChunkCutter(DiarizerShape(CHUNK, LEFT, RIGHT, 4))
    for _ in range(500):
        cutter.push(np.zeros(FRAME_SAMPLES, np.int16))
        cutter.next()
        assert cutter._audio.total - cutter._audio.first <= LEFT + CHUNK + RIGHT + FRAME_SAMPLES


def test_references_are_heard_first_and_name_whoever_speaks_in_them() -> None:
    references = References([KnownSpeaker("Ann", np.ones(32_001, np.int16)), KnownSpeaker("Bo", np.ones(40_000, np.int16))])
    assert len(references.samples) % FRAME_SAMPLES == 0
    assert len(references.samples) >= 72_001 + 2 * GAP_SAMPLES
    frames = np.zeros((len(references.samples) // FRAME_SAMPLES + 7, 4), np.float16)
    frames[:26, 2] = frames[33:60, 0] = 0.8
    assert [len(references.take(part)) for part in np.split(frames, [20, 50])] == [0, 0, 7]
    assert references.names() == ({2: "Ann", 0: "Bo"}, [])


def test_references_that_name_nobody() -> None:
    references = References([KnownSpeaker(name, np.ones(32_000, np.int16)) for name in ("Ann", "Bo", "Cy")])
    frames = np.zeros((len(references.samples) // FRAME_SAMPLES, 4), np.float16)
    per_name = len(frames) // 3
    frames[:per_name, 1], frames[per_name : 2 * per_name, 1] = 0.4, 0.8
    assert len(references.take(frames)) == 0
    names, (alike, silent) = references.names()
    assert names == {1: "Bo"}
    assert "`Bo` and `Ann` sound alike" in alike
    assert "`Cy`" in silent


def test_without_known_speakers_there_is_nothing_to_hear() -> None:
    references = References([])
    assert len(references.samples) == 0
    assert len(references.take(np.ones((3, 4), np.float16))) == 3
    assert references.names() == ({}, [])


def test_a_simulated_diarizer_tells_voices_apart_in_the_order_in_which_they_arrive() -> None:
    engine = SimulatedDiarizer(SimulationSettings(step_s=0, seconds_per_audio_s=0))
    second, silence = tone(2, 1.6), np.zeros(8 * FRAME_SAMPLES, np.int16)
    frames, state = engine.step(np.concatenate([second, silence, tone(0, 0.8)]), 0, 0, None)
    assert frames.shape == (38, SHAPE.max_speakers)
    assert set(frames[:20].argmax(axis=1)) == {0}
    assert not frames[20:28].any()
    assert set(frames[28:].argmax(axis=1)) == {1}
    context = np.concatenate([tone(3, 0.08), tone(0, 0.8), tone(2, 0.88), tone(3, 0.08)])
    again, later = engine.step(context, FRAME_SAMPLES, FRAME_SAMPLES, state)
    assert again.argmax(axis=1).tolist() == [1] * 10 + [0] * 11
    assert later == state
    assert len(engine.step(tone(1, 1.01), 0, 0, state)[0]) == 13
    with pytest.raises(EngineError, match="another"):
        engine.step(tone(1, 1.0), 0, 0, b"x" + STATE)


def test_chunks_of_the_simulated_diarizer_are_whole_frames() -> None:
    assert SHAPE.chunk_samples % FRAME_SAMPLES == 0
    assert SHAPE.chunk_samples / SAMPLE_RATE == pytest.approx(4.96)
