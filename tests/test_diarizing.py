"""A diarizer beside the pipeline: the same audio, each sample once; what waits for what; what fails."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from serve_app.chunking import windows as cut
from serve_app.diarization.chunks import Chunk
from serve_app.diarization.protocol import DiarizerShape, Probabilities
from serve_app.diarization.references import GAP_SAMPLES, KnownSpeaker
from serve_app.diarization.simulated import SHAPE
from serve_app.diarizing import MAX_BEHIND_S, Diarization, SpeakerOptions
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import EngineError, ModelUnavailable
from serve_app.events import Done, Event, Progress, SegmentFinal
from serve_app.pipeline import transcribe
from serve_app.settings import SimulationSettings
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window
from testing.local_diarizer import LocalDiarizer
from testing.voices import conversation, tone

TURNS = [(2, 6.0), (0, 5.0), (2, 4.0), (1, 6.0), (0, 5.0)]
UNAVAILABLE = ModelUnavailable("It is not there.", param="diarize")
ENGINE = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0))


class Flow:
    """The pipeline on some audio, cut into windows of 20 s, with a diarizer."""

    def __init__(self, samples: Samples, diarizer: LocalDiarizer, options: SpeakerOptions | None = None) -> None:
        self.samples = samples
        self.diarizer = diarizer
        self.options = options or SpeakerOptions("d")
        self.windows_read = 0
        self.recognising = asyncio.Event()
        self.recognising.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        diarization = Diarization(self.diarizer, self.options)
        flow = transcribe(diarization.tapped(self._windows()), self._recognise, overlap_s=2, max_in_flight=lambda: 2)
        async with aclosing(diarization.joined(flow)) as events:
            async for event in events:
                yield event

    async def _windows(self) -> AsyncGenerator[Window, None]:
        for window in cut([self.samples], 20, 2):
            self.windows_read += 1
            yield window

    async def _recognise(self, window: Window) -> list[Token]:
        await self.recognising.wait()
        return ENGINE.transcribe([window.samples])[0]

    async def done(self) -> Done:
        """The last event; it has the segments of the others."""
        *rest, last = [event async for event in self.events()]
        assert isinstance(last, Done)
        assert tuple(event.segment for event in rest if isinstance(event, SegmentFinal)) == last.segments
        assert last.duration_s == len(self.samples) / SAMPLE_RATE
        return last


async def text_without(samples: Samples) -> str:
    flow = Flow(samples, LocalDiarizer())
    events = transcribe(flow._windows(), flow._recognise, overlap_s=2, max_in_flight=lambda: 2)
    (done,) = [event async for event in events if isinstance(event, Done)]
    return " ".join(segment.text for segment in done.segments)


def turns(done: Done) -> list[str | None]:
    return [speaker for speaker, _ in groupby(segment.speaker for segment in done.segments)]


async def test_every_turn_has_its_speaker_and_the_text_is_the_same() -> None:
    samples = conversation(TURNS)
    done = await Flow(samples, LocalDiarizer()).done()
    assert turns(done) == ["A", "B", "A", "C", "B"]
    assert done.warnings == ()
    assert " ".join(segment.text for segment in done.segments) == await text_without(samples)


async def test_the_diarizer_gets_each_sample_once() -> None:
    diarizer, samples = LocalDiarizer(), conversation(TURNS)
    await Flow(samples, diarizer).done()
    heard = [chunk.samples[chunk.left_samples : len(chunk.samples) - chunk.right_samples] for chunk in diarizer.chunks]
    assert np.array_equal(np.concatenate(heard), samples)


async def test_known_speakers_are_heard_first() -> None:
    known = (KnownSpeaker("Cy", tone(1, 2.5)), KnownSpeaker("Ann", tone(0, 3.0)))
    diarizer = LocalDiarizer()
    done = await Flow(conversation(TURNS), diarizer, SpeakerOptions("d", known)).done()
    assert turns(done) == ["A", "Ann", "A", "Cy", "Ann"]
    assert np.array_equal(diarizer.chunks[0].samples[: len(known[0].reference)], known[0].reference)
    total = sum(chunk.new_samples for chunk in diarizer.chunks)
    assert 0 <= total - len(conversation(TURNS)) - round(5.5 * SAMPLE_RATE) - 2 * GAP_SAMPLES < 2 * FRAME_SAMPLES


async def test_a_reference_in_which_nobody_speaks_is_a_warning() -> None:
    known = (KnownSpeaker("Ann", np.zeros(40_000, np.int16)),)
    done = await Flow(conversation(TURNS[:2]), LocalDiarizer(), SpeakerOptions("d", known)).done()
    assert turns(done) == ["A", "B"]
    assert done.warnings == ("No speech was found in the reference of the speaker `Ann`.",)


async def test_segments_wait_for_the_diarizer_and_come_before_the_end() -> None:
    flow, found = Flow(conversation(TURNS * 2), LocalDiarizer()), []
    flow.diarizer.hold.clear()
    async with aclosing(flow.events()) as events:
        for _ in range(2):
            found.append(await anext(events))
        assert all(isinstance(event, Progress) for event in found)
        flow.diarizer.hold.set()
        async for event in events:
            found.append(event)
            if isinstance(event, SegmentFinal):
                break
        assert flow.windows_read < 6
        found += [event async for event in events]
    assert isinstance(found[-1], Done)
    assert turns(found[-1]) == ["A", "B", "A", "C", "B"] * 2


async def test_the_diarizer_may_be_far_ahead_of_the_models() -> None:
    flow = Flow(conversation(TURNS), LocalDiarizer())
    flow.recognising.clear()
    running = asyncio.ensure_future(flow.done())
    for _ in range(200):
        await asyncio.sleep(0)
    assert sum(chunk.new_samples for chunk in flow.diarizer.chunks) > 30 * SAMPLE_RATE
    flow.recognising.set()
    assert turns(await running) == ["A", "B", "A", "C", "B"]


async def test_no_window_is_read_while_the_diarizer_is_far_behind() -> None:
    samples = conversation(TURNS * 12)
    flow = Flow(samples, LocalDiarizer())
    flow.diarizer.hold.clear()
    running = asyncio.ensure_future(flow.done())
    for _ in range(3000):
        await asyncio.sleep(0)
    read = flow.windows_read
    assert MAX_BEHIND_S / 20 < read < (MAX_BEHIND_S + SHAPE.chunk_samples / SAMPLE_RATE) / 15 + 3
    assert read * 20 < 0.6 * len(samples) / SAMPLE_RATE
    flow.diarizer.hold.set()
    done = await running
    assert turns(done) == ["A", "B", "A", "C", "B"] * 12


async def test_a_diarizer_that_is_unavailable_is_the_first_that_is_known() -> None:
    flow = Flow(conversation(TURNS), LocalDiarizer())
    flow.diarizer.unavailable = UNAVAILABLE
    with pytest.raises(ModelUnavailable, match="not there"):
        await anext(flow.events())


async def test_an_optional_one_that_is_unavailable_leaves_a_warning() -> None:
    samples = conversation(TURNS)
    flow = Flow(samples, LocalDiarizer(), SpeakerOptions("d", is_optional=True))
    flow.diarizer.unavailable = UNAVAILABLE
    done = await flow.done()
    assert turns(done) == [None]
    assert done.warnings == ("The speakers are unknown: It is not there.",)
    assert " ".join(segment.text for segment in done.segments) == await text_without(samples)
    assert flow.diarizer.chunks == []


async def test_a_diarizer_that_fails_later_fails_the_recording() -> None:
    flow = Flow(conversation(TURNS), LocalDiarizer())
    flow.diarizer.failures = {3: EngineError("It broke.")}
    with pytest.raises(EngineError, match="broke"):
        await flow.done()


async def test_a_failure_while_the_reader_is_away_is_not_lost() -> None:
    """All windows are recognised by then, and nothing else is to come."""
    fails = asyncio.Event()

    class Failing(LocalDiarizer):
        async def step(self, chunk: Chunk, state: bytes | None) -> tuple[Probabilities, bytes]:
            if len(self.chunks) == 6:
                await fails.wait()
                raise EngineError("It broke.")
            return await super().step(chunk, state)

    flow = Flow(conversation(TURNS), Failing())
    flow.diarizer.hold.clear()

    async def wait() -> None:
        for _ in range(500):
            await asyncio.sleep(0)

    async with aclosing(flow.events()) as events:
        count = len(list(cut([flow.samples], 20, 2)))
        for done in range(count):
            event = await anext(events)
            assert isinstance(event, Progress)
            assert event.windows_done == done + 1
        segment = asyncio.ensure_future(anext(events))
        await wait()
        flow.diarizer.hold.set()
        assert isinstance(await segment, SegmentFinal)
        fails.set()
        await wait()
        with pytest.raises(EngineError, match="broke"):
            assert not [event async for event in events if isinstance(event, Done)]


async def test_an_optional_one_that_fails_later_leaves_the_rest_without_speakers() -> None:
    flow = Flow(conversation(TURNS), LocalDiarizer(), SpeakerOptions("d", is_optional=True))
    flow.diarizer.failures = {3: EngineError("It broke.")}
    done = await flow.done()
    assert turns(done) == ["A", "B", None]
    assert [segment.index for segment in done.segments] == list(range(len(done.segments)))
    assert done.warnings == ("The speakers are unknown from 15 s on: It broke.",)


async def test_silence_and_nothing_have_no_speakers() -> None:
    assert (await Flow(np.zeros(3 * SAMPLE_RATE, np.int16), LocalDiarizer()).done()).segments == ()
    assert (await Flow(np.zeros(0, np.int16), LocalDiarizer()).done()) == Done((), 0.0)


async def test_nothing_runs_on_once_the_reader_is_gone() -> None:
    flow = Flow(conversation(TURNS * 4), LocalDiarizer())
    before = asyncio.all_tasks()
    async with aclosing(flow.events()) as events:
        async for event in events:
            if isinstance(event, SegmentFinal):
                break
        flow.diarizer.hold.clear()
    assert asyncio.all_tasks() == before


async def test_chunks_longer_than_what_may_wait() -> None:
    """Audio of a chunk that is not complete does not wait for the diarizer."""

    class Long(LocalDiarizer):
        async def shape(self) -> DiarizerShape:
            await asyncio.sleep(0.01)
            return replace(SHAPE, chunk_samples=round(2 * MAX_BEHIND_S * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES)

    async with asyncio.timeout(20):
        done = await Flow(np.tile(conversation(TURNS), 20), Long()).done()
    assert {segment.speaker for segment in done.segments} == {"A", "B", "C"}
