"""Lengths of the sliding windows in which a live stream is decoded."""

from dataclasses import dataclass, replace

from serve_app.window import SAMPLE_RATE

MIN_NEW_AUDIO = 2 * SAMPLE_RATE
"""A window of maximal length holds at least this much audio besides its left and right context, samples."""


@dataclass(frozen=True, slots=True)
class LiveWindows:
    """All in samples."""

    step: int
    """New audio per step."""
    left: int
    """Left context: audio before the first word that is not final."""
    right: int
    """Right context: audio that must follow a word before it is final."""
    max_window: int
    """Longest window. A stream that fell behind catches up in windows of this length."""

    def scaled(self, right_context_scale: float) -> "LiveWindows":
        """The same with the right context multiplied, as far as the longest window has room for it."""
        room = self.max_window - self.left - MIN_NEW_AUDIO
        return replace(self, right=min(round(self.right * right_context_scale), max(self.right, room)))
