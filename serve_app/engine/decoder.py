"""The interface of the families of decoders: encoder output in, tokens out, both on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.window import Keywords


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """The tokens of all windows of a batch, one window after the other. Tensors on the device, [tokens]."""

    counts: list[int]
    """Tokens of each window."""
    token_ids: Any
    start_frames: Any
    end_frames: Any
    confidences: Any
    """Probabilities of the tokens where they were emitted, 0 to 1."""


class Decoder(Protocol):
    """Decodes encoder output. Not thread-safe."""

    has_keywords: bool
    """Whether `decode` can boost phrases."""
    late_punctuation: bool
    """Whether punctuation takes the end time of the word before it, instead of its own times."""

    @property
    def mode(self) -> str:
        """See EngineInfo.decoder."""
        ...

    def warm_up(self, shape: tuple[int, int], like: Any) -> None:
        """Prepare for batches of up to `shape`, (windows, encoder frames). `like`: encoder output, float
        [windows, frames, features], of which device, number format and features count."""
        ...

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> DecodedBatch:
        """`encoded`: float [windows, frames, features]. `frame_counts`: int [windows]. `keywords`: one list per window, all of
        them empty if `has_keywords` is false."""
        ...
