"""The state of one live stream: which window is decoded next, which words are final, where utterances end. No I/O, no clock.

Sliding-window decoding: each step decodes the newest audio plus left context, so any replica can serve any step. A word is final
once the right context follows it; everything after the last final word is a partial hypothesis, which the next step replaces.

Audio, VAD events, commits and step results may come in any order; `pipeline.transcribe_live` does the waiting between them.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from serve_app.audio.buffer import AudioBuffer
from serve_app.events import Done, Hypothesis, LiveEvent, SegmentFinal, SpeechStarted, SpeechStopped, UtteranceFinal
from serve_app.live.endpointing import VadEvent
from serve_app.live.windows import LiveWindows
from serve_app.merging.seams import following, group_words, monotonic
from serve_app.output.segments import Segmenter, words_of
from serve_app.transcript import Segment, Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window

LEAD_IN = SAMPLE_RATE // 2
"""Audio decoded before an utterance, samples: features are normalised over the window, which needs some silence for that."""

WORD_TAIL = SAMPLE_RATE // 5
"""Decoders place the end of a word a little early: audio up to this many samples after it still belongs to the word."""

SILENT_STEP = 8 * SAMPLE_RATE
"""New audio per step, samples, while the VAD detects no speech: speech that the VAD misses is still decoded, only later."""

MIN_UNDETECTED = SAMPLE_RATE // 2
"""Minimum new audio to decode where no frame may hold speech, samples; digital silence around it does not count. A decoder finds
words in shorter noise."""

SILENCE_PEAK = 8
"""Largest sample of digital silence: A-law has no zero, and its values nearest to zero are -8 and 8."""


class LiveSession:
    """One stream. Positions are samples of the stream.

    An utterance ends where the VAD has detected the end of speech, at a commit, and at the end of the audio. With `pauses_end` it
    also ends when a step leaves final words, no partial ones, and the VAD detects no speech: the VAD missed that speech. While an
    utterance is ending, windows reach no further than its end, so every word belongs to one utterance.
    """

    def __init__(self, windows: LiveWindows, *, pauses_end: bool = True) -> None:
        self._windows = windows
        self._pauses_end = pauses_end
        self._audio = AudioBuffer()
        self._segmenter = Segmenter()
        self._segments: list[Segment] = []
        self._events: list[LiveEvent] = []
        self._hypothesis = Hypothesis((), ())

        self._boundaries: deque[VadEvent | int] = deque()  # VAD events and commits (positions) not processed yet
        self._utterance_end: int | None = None  # of the utterance that is ending
        self._is_speech = False
        self._is_finished = False  # no more audio comes
        self._is_done = False

        self._possible_speech_until = 0  # end of the newest audio that may hold speech
        self._step: Window | None = None  # in progress
        self._next_index = 0
        self._origin = 0  # audio before it is not decoded any more
        self._final_until = 0  # words and silence before it are final
        self._decoded_until = 0
        self._known: list[Token] = []  # final tokens of this utterance that the next window decodes again
        self._has_partial = False

    @property
    def position(self) -> int:
        """Length of the audio pushed so far."""
        return self._audio.total

    @property
    def backlog(self) -> int:
        """Samples that no step has decoded."""
        return self._audio.total - self._decoded_until

    @property
    def is_active(self) -> bool:
        """Steps are short: the VAD detects speech, or words are not final yet."""
        return self._is_speech or self._has_partial

    @property
    def is_ending(self) -> bool:
        """An utterance is ending: audio after it is decoded only once all its words are final."""
        return self._utterance_end is not None

    @property
    def is_finished(self) -> bool:
        """Whether `finish` was called."""
        return self._is_finished

    def push(self, block: Samples, vad_events: Sequence[VadEvent] = (), possible_speech_until: int | None = None) -> None:
        """Take int16 [samples], and the VAD events that they brought.

        `possible_speech_until`: see VoiceActivityDetector; None: all audio may hold speech.
        """
        self._audio.push(block)
        self._possible_speech_until = self.position if possible_speech_until is None else possible_speech_until
        self._boundaries.extend(vad_events)
        self._advance()

    def commit(self) -> None:
        """End the utterance at the end of the audio pushed so far."""
        self._boundaries.append(self.position)
        self._advance()

    def finish(self) -> None:
        """The audio is complete: commit; `Done` follows once all is final."""
        self._is_finished = True
        self.commit()

    def next_window(self) -> Window | None:
        """The window to decode now; None while a step is in progress, until there is enough new audio, and after Done."""
        while self._step is None and (window := self._due_window()) is not None:
            self._step = window
            if self._may_hold_speech(window):
                self._next_index += 1
                return window
            self.add([])
        return None

    def _due_window(self) -> Window | None:
        if self._is_done:
            return None
        end = self.position if self._utterance_end is None else self._utterance_end
        new_audio = self._windows.step if self.is_active else SILENT_STEP
        if self._utterance_end is None and end - self._decoded_until < new_audio:
            return None
        start = max(0, self._origin, self._final_until - self._windows.left) // FRAME_SAMPLES * FRAME_SAMPLES
        stop = min(end, start + self._windows.max_window)
        return Window(self._next_index, start, self._audio.read(start, stop))

    def _may_hold_speech(self, window: Window) -> bool:
        """Whether the audio that is new in the window may hold a word, or an earlier word is not final."""
        if self._has_partial or self._possible_speech_until > self._final_until:
            return True
        new = self._audio.read(self._decoded_until, window.end_sample).astype(np.int32)
        audible = np.flatnonzero(np.abs(new) > SILENCE_PEAK)
        length = int(audible[-1] - audible[0]) + 1 if len(audible) else 0
        # While the VAD detects speech, steps are short, and the speech of this one may go on in the next.
        return length >= (MIN_UNDETECTED if self.is_ending or not self._is_speech else 1)

    def add(self, tokens: Sequence[Token]) -> None:
        """Take the tokens of the window in progress, with times in samples from its start."""
        assert self._step is not None
        window, self._step = self._step, None
        decoded = monotonic([token.moved(window.start_sample) for token in tokens])
        is_last = self._utterance_end is not None and window.end_sample >= self._utterance_end
        final, partial = self._split(following(self._known, decoded), window, is_last=is_last)
        self._emit_segments(self._segmenter.add(final))
        hypothesis = Hypothesis(self._segmenter.unfinished, words_of(partial))
        if hypothesis != self._hypothesis:
            self._hypothesis = hypothesis
            self._events.append(hypothesis)
        if is_last:
            self._close_utterance()
        elif self._pauses_end and hypothesis.final and not (partial or self._is_speech or self.is_ending):
            self._utterance_end = window.end_sample
        self._drop_audio()
        self._advance()

    def take_events(self) -> list[LiveEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def _split(self, fresh: list[Token], window: Window, *, is_last: bool) -> tuple[list[Token], list[Token]]:
        """Divide the tokens after the known ones into final and partial; `is_last`: the window reaches its utterance's end."""
        settled = window.end_sample if is_last else window.end_sample - self._windows.right
        words = group_words(fresh)
        count = next((n for n, word in enumerate(words) if word.end > settled and not is_last), len(words))
        if count == 0 and words and not is_last and len(window.samples) >= self._windows.max_window:
            # The window cannot grow any more, so no later step would make the first word final: accept it now.
            count = 1
        final = [token for word in words[:count] for token in word.tokens]
        partial = fresh[len(final) :]
        self._decoded_until = window.end_sample
        self._has_partial = bool(partial)
        self._known += final
        self._final_until = max(self._final_until, min(settled, partial[0].start_sample) if partial else settled)
        if not self._known and not partial:
            self._origin = max(self._origin, self._final_until - LEAD_IN)
        self._known = [token for token in self._known if token.end_sample > self._final_until - self._windows.left]
        return final, partial

    def _advance(self) -> None:
        """Process queued boundaries until one ends an utterance that still needs a step. Emits Done when nothing is left."""
        while self._step is None or self._utterance_end is None:
            if self._utterance_end is not None:
                if self._decoded_until < self._utterance_end or self._has_partial:
                    return
                self._close_utterance()
            elif self._boundaries:
                self._pass_boundary(self._boundaries.popleft())
            else:
                if self._is_finished and not self._is_done:
                    self._is_done = True
                    self._events.append(Done(tuple(self._segments), self.position / SAMPLE_RATE))
                return

    def _pass_boundary(self, boundary: "VadEvent | int") -> None:
        if isinstance(boundary, int):
            self._utterance_end = max(boundary, self._decoded_until)
        elif boundary.is_speech:
            self._is_speech = True
            self._events.append(SpeechStarted(boundary.sample / SAMPLE_RATE))
        else:
            self._is_speech = False
            self._events.append(SpeechStopped(boundary.sample / SAMPLE_RATE))
            self._utterance_end = max(boundary.detected_at, self._decoded_until)

    def _close_utterance(self) -> None:
        assert self._utterance_end is not None
        end = self._utterance_end
        self._final_until = max(self._final_until, end)
        # Where an utterance ends in the middle of speech, its last word must not be decoded again.
        spoken_until = max((token.end_sample + WORD_TAIL for token in self._known), default=0)
        self._origin = max(self._origin, end - LEAD_IN, min(end, spoken_until))
        self._known, self._has_partial, self._utterance_end = [], False, None
        self._emit_segments(self._segmenter.finish())
        self._events.append(UtteranceFinal(end / SAMPLE_RATE))

    def _emit_segments(self, segments: Sequence[Segment]) -> None:
        self._segments.extend(segments)
        self._events += map(SegmentFinal, segments)

    def _drop_audio(self) -> None:
        self._audio.drop_before(max(self._origin, self._final_until - self._windows.left) - FRAME_SAMPLES)
