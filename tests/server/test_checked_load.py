"""The streams of a checked load, without a server: no word of theirs may be one that the server leaves out on purpose."""

from collections.abc import AsyncGenerator

import pytest

from serve_app.audio.dither import without_zeros
from serve_app.engine.simulated import SimulatedEngine
from serve_app.events import SegmentFinal
from serve_app.live.endpointing import Endpointing
from serve_app.live.session import LiveSession
from serve_app.live.vad import SileroModel
from serve_app.output import export
from serve_app.pipeline import Commit, transcribe_live
from serve_app.settings import LiveSettings, SimulationSettings
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE, Samples, Window
from testing.checked_load import MESSAGE_S, CheckedLoad, Client, Words, as_words, words_of

MESSAGE = round(MESSAGE_S * SAMPLE_RATE)
LIVE = LiveSettings(step_s=3.0, left_s=3.0, right_s=1.0)
ENGINE = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0))


@pytest.mark.parametrize(("stream", "messages"), [(13, 172), (14, 226), (19, 87), (19, 91)])
async def test_streams_end_with_speech_that_is_heard(stream: int, messages: int) -> None:
    """Without clear speech at the end, a digit before these ends is noise to the VAD."""
    client = CheckedLoad([], "", 0, 0.0, stream + 1).streams[stream]
    assert len(client.closing) % MESSAGE == 0
    client.end = messages * MESSAGE + len(client.closing)
    assert await heard(client, client.end) == words_of(client.spoken(0, client.end))
    alone = Client("stream", client.samples, words_of(client.spoken(0, messages * MESSAGE)))
    assert alone.expected - await heard(alone, messages * MESSAGE), "the ends are no longer hard"


async def heard(client: Client, end: int) -> Words:
    """What the server would answer if the stream ended there, in samples."""

    async def audio() -> AsyncGenerator[Samples | Commit, None]:
        for at in range(0, end, MESSAGE):
            yield client.spoken(at, at + MESSAGE)

    async def recognise(window: Window) -> list[Token]:
        return ENGINE.transcribe([without_zeros(window).samples])[0]

    vad = SileroModel().detector(Endpointing(LIVE.endpoint_s))
    found = Words()
    async for event in transcribe_live(audio(), recognise, vad, LiveSession(LIVE.windows), max_backlog=60 * SAMPLE_RATE):
        if isinstance(event, SegmentFinal):
            found += as_words([export.to_word(word) for word in event.segment.words], 0)
    return found
