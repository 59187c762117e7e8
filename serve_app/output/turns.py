"""Segments of several channels in the order of time."""

import heapq
from collections.abc import Sequence
from dataclasses import replace

from serve_app.output.segments import Segmenter
from serve_app.transcript import Segment, Token


class Turns:
    """Groups the tokens of each channel into segments, and returns these in the order in which they start.

    A segment is held back until every other channel is past its start.
    """

    def __init__(self, channels: int) -> None:
        self._segmenters = [Segmenter() for _ in range(channels)]
        self._held: list[tuple[float, int, int, Segment]] = []
        self._next_index = 0

    def add(self, tokens: Sequence[Sequence[Token]], positions: Sequence[int]) -> list[Segment]:
        """Add the next tokens of each channel; return the segments that can follow now.

        `positions`: of each channel, no token that is still to come starts before this, samples.
        """
        limit = float("inf")
        for channel, (segmenter, new, position) in enumerate(zip(self._segmenters, tokens, positions, strict=True)):
            self._hold(channel, segmenter.add(new) + segmenter.pass_silence(position))
            limit = min(limit, position if segmenter.start_sample is None else segmenter.start_sample)
        return self._released(limit)

    def finish(self) -> list[Segment]:
        """The rest, once no channel has any more tokens."""
        for channel, segmenter in enumerate(self._segmenters):
            self._hold(channel, segmenter.finish())
        return self._released(float("inf"))

    def _hold(self, channel: int, segments: list[Segment]) -> None:
        for segment in segments:
            heapq.heappush(self._held, (segment.tokens[0].start_sample, channel, segment.index, segment))

    def _released(self, limit: float) -> list[Segment]:
        segments = []
        while self._held and self._held[0][0] < limit:
            _, channel, _, segment = heapq.heappop(self._held)
            segments.append(replace(segment, index=self._next_index, channel=channel))
            self._next_index += 1
        return segments
