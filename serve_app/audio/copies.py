"""Channels that only repeat the first one, as in a mono recording that was stored as stereo.

Nobody wants the same words twice, and to find them twice takes twice the time.
"""

import numpy as np

from serve_app.window import SAMPLE_RATE, Samples

COMPARED_SAMPLES = SAMPLE_RATE
"""Length of the pieces in which channels are compared, samples. In shorter ones the noise of a codec may exceed quiet speech."""

COPY_RATIO = 0.05
"""A piece is a copy if its difference from that of the first channel has at most this ratio (-13 dB) of the power of that one.

Lossless codecs, MP3 and Vorbis keep copies exact; Opus at 64 kbit/s and more has up to -50 dB, WMA -24 dB, AAC at 64 kbit/s
-14 dB. Of two microphones that hear the same talker, one 10 dB louder than the other, the difference is at -3 dB.
"""

ROUNDING_POWER = 1.0
"""A difference of this mean square is none: one step of an int16 sample."""

SOUNDING_POWER = 33.0**2
"""Mean square above which a piece says something about its channel, -60 dBFS."""


class Copies:
    """Finds the copies of the first channel in one recording, and silences them."""

    def __init__(self) -> None:
        self._copied: set[int] = set()
        self._own: set[int] = set()

    def silenced(self, block: Samples) -> Samples:
        """The next block, int16 [channels, samples], with digital silence in the place of copies."""
        block = block.copy()
        # A short rest belongs to the piece before it.
        starts = range(0, max(1, block.shape[1] - COMPARED_SAMPLES // 2), COMPARED_SAMPLES)
        for piece in np.split(block, starts[1:], axis=1):
            first = piece[0].astype(np.float32)
            for channel, samples in enumerate(piece[1:], 1):
                difference = samples - first
                limit = max(ROUNDING_POWER, COPY_RATIO * _power(first))
                is_copy, is_sounding = _power(difference) <= limit, _power(samples) > SOUNDING_POWER
                if is_sounding:
                    (self._copied if is_copy else self._own).add(channel)
                if is_copy:
                    samples[:] = 0
        return block

    @property
    def channels(self) -> list[int]:
        """The channels that were nothing but copies so far."""
        return sorted(self._copied - self._own)


def _power(samples: Samples | np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    samples = samples.astype(np.float32, copy=False)
    return float(np.vecdot(samples, samples)) / max(1, len(samples))
