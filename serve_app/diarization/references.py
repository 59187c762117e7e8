"""Known speakers: audio of each is heard before the recording, and whoever speaks there has that name. Pure."""

import json
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve_app.diarization.protocol import Probabilities
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples

GAP_SAMPLES = SAMPLE_RATE // 2
"""Silence after the audio of each, samples."""

MIN_ACTIVITY = 0.1
"""Mean probability of a speaker in a reference below which nobody was found there."""


class KnownSpeaker(NamedTuple):
    """Somebody whose voice is known."""

    name: str
    reference: Samples
    """How they speak, int16 [samples]."""


def pack_speakers(speakers: Sequence[KnownSpeaker]) -> bytes:
    """As bytes, to be kept: a line of JSON with names and lengths, then all samples, compressed. No bytes for no speakers."""
    if not speakers:
        return b""
    heads = json.dumps([(name, len(reference)) for name, reference in speakers]).encode()
    samples = np.concatenate([reference for _, reference in speakers])
    return heads + b"\n" + zlib.compress(samples.astype("<i2").tobytes())


def unpack_speakers(data: bytes) -> tuple[KnownSpeaker, ...]:
    """What `pack_speakers` was given."""
    if not data:
        return ()
    heads, _, compressed = data.partition(b"\n")
    names, lengths = zip(*json.loads(heads), strict=True)
    samples = np.frombuffer(zlib.decompress(compressed), "<i2").astype(np.int16)
    return tuple(map(KnownSpeaker, names, np.split(samples, np.cumsum(lengths)[:-1])))


class References:
    """The audio before a recording, and what a diarizer finds in it."""

    def __init__(self, speakers: Sequence[KnownSpeaker]) -> None:
        pieces: list[Samples] = []
        self._spans: list[tuple[str, int, int]] = []
        """Name, first frame and the frame after the last one."""
        position = 0
        for name, reference in speakers:
            # Whole frames, so that the recording begins with one.
            silence = GAP_SAMPLES + -(len(reference) + GAP_SAMPLES) % FRAME_SAMPLES
            self._spans.append((name, position // FRAME_SAMPLES, -(-(position + len(reference)) // FRAME_SAMPLES)))
            pieces += [reference, np.zeros(silence, np.int16)]
            position += len(reference) + silence
        self.samples: Samples = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
        """To be heard before the recording."""
        self._missing = position // FRAME_SAMPLES
        self._heard: list[Probabilities] = []

    def take(self, probabilities: Probabilities) -> Probabilities:
        """Take the next frames, and return those of the recording among them."""
        own, rest = probabilities[: self._missing], probabilities[self._missing :]
        if len(own):
            self._heard.append(own)
            self._missing -= len(own)
        return rest

    def names(self) -> tuple[dict[int, str], list[str]]:
        """Names by the speaker's column, once all frames were taken; with a warning for each name that nobody gets."""
        if not self._spans:
            return {}, []
        heard: NDArray[np.float32] = np.concatenate(self._heard).astype(np.float32)
        claims: dict[int, tuple[float, str]] = {}
        warnings = []
        for name, first, last in self._spans:
            activity = heard[first:last].mean(axis=0)
            column = int(activity.argmax())
            claim = (float(activity[column]), name)
            if claim[0] < MIN_ACTIVITY:
                warnings.append(f"No speech was found in the reference of the speaker `{name}`.")
                continue
            if column in claims:
                claim, (_, other) = max(claim, claims[column]), min(claim, claims[column])
                warnings.append(f"The speakers `{claim[1]}` and `{other}` sound alike: both are `{claim[1]}`.")
            claims[column] = claim
        return {column: name for column, (_, name) in claims.items()}, warnings
