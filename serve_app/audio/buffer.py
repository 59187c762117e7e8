"""A buffer of the newest audio of a recording. Blocks of any size are appended, and any span that is still held can be read."""

from collections import deque

import numpy as np

from serve_app.window import Samples


class AudioBuffer:
    """Holds the audio from `first` to `total`. All positions are samples of the recording."""

    def __init__(self) -> None:
        self._blocks: deque[Samples] = deque()
        self.first = 0
        """Start of the oldest block that is still held."""
        self.total = 0
        """End of the newest block, which is the length of the audio so far."""

    def push(self, block: Samples) -> None:
        """Append a copy of a block, int16 [samples]."""
        if len(block):
            self._blocks.append(block.copy())
        self.total += len(block)

    def read(self, start: int, stop: int) -> Samples:
        """A copy of the samples from `start` to `stop`, int16 [samples]. Samples that are not held are left out."""
        pieces, first = [], self.first
        for block in self._blocks:
            if first < stop and first + len(block) > start:
                pieces.append(block[max(0, start - first) : stop - first])
            first += len(block)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)

    def drop_before(self, position: int) -> None:
        """Release the blocks that end at `position` or earlier."""
        while self._blocks and self.first + len(self._blocks[0]) <= position:
            self.first += len(self._blocks.popleft())
