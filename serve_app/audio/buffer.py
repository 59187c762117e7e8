"""A stretch of a recording, the newest audio at its end: blocks of any size in, any part of what is still held out."""

from collections import deque

import numpy as np

from serve_app.window import Samples


class AudioBuffer:
    """Positions are samples of the recording. Memory is what lies between `first` and `total`, and a block."""

    def __init__(self) -> None:
        self._blocks: deque[Samples] = deque()
        self.first = 0
        """Where the oldest block still held begins."""
        self.total = 0
        """Where the audio ends so far."""

    def push(self, block: Samples) -> None:
        """Take int16 [samples]."""
        if len(block):
            self._blocks.append(block.copy())
        self.total += len(block)

    def read(self, start: int, stop: int) -> Samples:
        """A copy of what lies between two positions that are still held."""
        pieces, first = [], self.first
        for block in self._blocks:
            if first < stop and first + len(block) > start:
                pieces.append(block[max(0, start - first) : stop - first])
            first += len(block)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)

    def drop_before(self, position: int) -> None:
        """Let go of blocks that end there or earlier."""
        while self._blocks and self.first + len(self._blocks[0]) <= position:
            self.first += len(self._blocks.popleft())
