"""Live speech: which stretch is heard next, and which of its words are final. Pure; the loop around it is in `pipeline.py`.

Every step hears the newest audio again with some that came before it, so any replica can serve any step. Of what it hears, the
words that enough audio follows become final and never change; the rest is partial, and is heard again by the next step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.buffer import AudioBuffer
from serve_app.seams import following, group_words, monotonic
from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE, Samples, Token, Window

LEAD_IN = SAMPLE_RATE // 2
"""Silence heard before an utterance: features are normalised over the window, which speech alone would upset."""

TAIL = SAMPLE_RATE // 5
"""Decoders put the end of a word a little early: what sounds so long behind it is still the word."""

ROOM = 2 * SAMPLE_RATE
"""A window is at least so much longer than what is heard around new words."""

QUIET_STEP = 8 * SAMPLE_RATE
"""Audio in which nobody seems to speak is heard all the same, so often."""


@dataclass(frozen=True, slots=True)
class LiveWindows:
    """How a stream is heard, in samples."""

    step: int
    """New audio for a step."""
    left: int
    """Heard before the first word that is not final."""
    right: int
    """Heard after a word before it is final."""
    longest: int
    """Longest window: where hearing fell behind, it catches up in pieces of this length."""

    def with_patience(self, factor: float) -> "LiveWindows":
        """The same with so many times the audio after a word, as far as there is room."""
        return replace(self, right=min(round(self.right * factor), max(self.right, self.longest - self.left - ROOM)))


@dataclass(frozen=True, slots=True)
class Hearing:
    """What a step brought: tokens that are final now, and those of the present guess behind them."""

    final: list[Token]
    partial: list[Token]


class Listener:
    """The state of one stream. Audio goes in by `push`; a step is a `next_window` and the `add` of its tokens."""

    def __init__(self, windows: LiveWindows) -> None:
        self._windows = windows
        self._audio = AudioBuffer()
        self._known: list[Token] = []
        self._origin = 0  # what lies before is not heard again
        self._final = 0  # what was said before here is final
        self._heard = 0
        self._has_partial = False
        self._index = 0
        self._utterance_end: int | None = None

    @property
    def position(self) -> int:
        """Samples that came in."""
        return self._audio.total

    @property
    def backlog(self) -> int:
        """Samples that came in and no step has heard."""
        return self._audio.total - self._heard

    def push(self, block: Samples) -> None:
        """Take int16 [samples]."""
        self._audio.push(block)

    def end_utterance(self, sample: int) -> None:
        """All that came in before `sample` is to be heard and made final; what follows stands by itself."""
        self._utterance_end = max(sample, self._heard)

    @property
    def is_settled(self) -> bool:
        """Nothing is left to hear of an utterance that was ended."""
        return self._utterance_end is None

    def next_window(self, *, is_speech: bool) -> Window | None:
        """What to hear now, None to wait for more audio. With `is_speech` somebody is speaking."""
        end = self._audio.total if self._utterance_end is None else self._utterance_end
        new = end - self._heard
        if self._utterance_end is None:
            if new < (self._windows.step if is_speech or self._has_partial else QUIET_STEP):
                return None
        elif new == 0 and not self._has_partial:
            self._close_utterance()
            return None
        start = max(0, self._origin, self._final - self._windows.left) // FRAME_SAMPLES * FRAME_SAMPLES
        stop = min(end, start + self._windows.longest)
        self._index += 1
        return Window(self._index - 1, start, self._audio.read(start, stop))

    def add(self, window: Window, tokens: Sequence[Token]) -> Hearing:
        """Take what a window's step heard; times: samples of the stream."""
        is_whole = self._utterance_end is not None and window.end_sample >= self._utterance_end
        settled = window.end_sample if is_whole else window.end_sample - self._windows.right
        fresh = following(self._known, monotonic(list(tokens)))
        final: list[Token] = []
        for word in group_words(fresh):
            if word.end > settled and not is_whole:
                break
            final += word.tokens
        if not final and fresh and not is_whole and len(window.samples) >= self._windows.longest:
            # A word as long as a window may grow would be heard for ever.
            final = list(group_words(fresh)[0].tokens)
        partial = fresh[len(final) :]
        self._heard = window.end_sample
        self._has_partial = bool(partial)
        self._known += final
        # Whatever was said before the first word that may change is final, and so is the silence.
        self._final = max(self._final, min(settled, partial[0].start_sample) if partial else settled)
        if not self._known and not partial:
            self._origin = max(self._origin, self._final - LEAD_IN)
        self._known = [token for token in self._known if token.end_sample > self._final - self._windows.left]
        if is_whole:
            self._close_utterance()
        self._audio.drop_before(max(self._origin, self._final - self._windows.left) - FRAME_SAMPLES)
        return Hearing(final, partial)

    def _close_utterance(self) -> None:
        assert self._utterance_end is not None
        end = self._utterance_end
        self._final = max(self._final, end)
        # Where an utterance ends in mid-speech, its last word is not to be heard again.
        spoken = max((token.end_sample + TAIL for token in self._known), default=0)
        self._origin = max(self._origin, end - LEAD_IN, min(end, spoken))
        self._known, self._has_partial, self._utterance_end = [], False, None
