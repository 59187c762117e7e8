"""Cuts a recording into the chunks of a diarizer. Pure."""

from typing import NamedTuple

from serve_app.audio.buffer import AudioBuffer
from serve_app.diarization.protocol import DiarizerShape
from serve_app.window import Samples


class Chunk(NamedTuple):
    """A chunk with the audio around it, as `DiarizerEngine.step` takes it."""

    samples: Samples
    left_samples: int
    right_samples: int

    @property
    def new_samples(self) -> int:
        """Length of the chunk itself, samples."""
        return len(self.samples) - self.left_samples - self.right_samples


class ChunkCutter:
    """Takes blocks of any size. Holds one chunk with its context, and what was pushed since."""

    def __init__(self, shape: DiarizerShape) -> None:
        self._shape = shape
        self._audio = AudioBuffer()
        self._start = 0
        """Of the next chunk."""

    def push(self, block: Samples) -> None:
        """Add audio, int16 [samples]."""
        self._audio.push(block)

    @property
    def waiting_samples(self) -> int:
        """Audio in complete chunks, right context included, that were not taken yet."""
        rest = self._audio.total - self._start - self._shape.right_samples
        return max(0, rest // self._shape.chunk_samples * self._shape.chunk_samples)

    def next(self, *, is_last: bool = False) -> Chunk | None:
        """The next chunk, None where it is not complete. `is_last`: no audio follows, so it may be shorter."""
        shape, total = self._shape, self._audio.total
        if self._start >= total or (not is_last and not self.waiting_samples):
            return None
        end = min(self._start + shape.chunk_samples, total)
        first, last = max(0, self._start - shape.left_samples), min(end + shape.right_samples, total)
        chunk = Chunk(self._audio.read(first, last), self._start - first, last - end)
        self._start = end
        self._audio.drop_before(end - shape.left_samples)
        return chunk
