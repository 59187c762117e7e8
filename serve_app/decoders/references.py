"""Decodes how a known speaker sounds, in the decoder processes."""

import io
from contextlib import aclosing

from serve_app.decoders.pool import DecoderPool
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples

MIN_REFERENCE_S, MAX_REFERENCE_S = 2.0, 10.0
"""OpenAI's bounds, seconds."""

TOLERANCE_S = 0.2
"""A file of some codecs is a little longer than what was put in, seconds."""

PARAM = "known_speaker_references[]"

_WINDOW_S = 60.0
"""Anything up to this length is one window, whose length is the true one."""


async def reference_samples(decoders: DecoderPool, name: str, data: bytes) -> Samples:
    """The audio of a media file, int16 [samples]. Raises AudioError with `name`, the speaker's."""
    recording = decoders.open(io.BytesIO(data))
    try:
        async with aclosing(recording.windows(_WINDOW_S, 0)) as windows:
            window = await anext(windows, None)
    except AudioError as error:
        raise AudioError(f"The reference of the speaker `{name}`: {error.message}", param=PARAM) from error
    length_s = 0.0 if window is None else len(window.samples) / SAMPLE_RATE
    if window is None or not MIN_REFERENCE_S - TOLERANCE_S <= length_s <= MAX_REFERENCE_S + TOLERANCE_S:
        raise AudioError(
            f"The reference of the speaker `{name}` lasts {length_s:.1f} s; it has to last from {MIN_REFERENCE_S:.0f} to "
            f"{MAX_REFERENCE_S:.0f} s.",
            param=PARAM,
        )
    return window.samples
