"""Live sessions with audio, step results, VAD events and commits in any order."""

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.events import Done, Hypothesis, LiveEvent, SegmentFinal, SpeechStarted, SpeechStopped, UtteranceFinal
from serve_app.live.endpointing import VadEvent
from serve_app.live.session import LiveSession
from serve_app.live.windows import LiveWindows
from serve_app.transcript import Token, Word
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Window
from testing.live_words import decoded, final_tokens, said, silence

WINDOWS = LiveWindows(step=6_400, left=8 * SAMPLE_RATE, right=2 * SAMPLE_RATE, max_window=30 * SAMPLE_RATE)
SHORT_WINDOWS = LiveWindows(step=6_400, left=SAMPLE_RATE, right=SAMPLE_RATE // 2, max_window=5 * SAMPLE_RATE)


class Conversation:
    """A session that is driven by actions in any order, and what must hold after each of them."""

    def __init__(self, words: list[Token], windows: LiveWindows, *, pauses_end: bool) -> None:
        self.words = words
        self.windows = windows
        self.session = LiveSession(windows, pauses_end=pauses_end)
        self.window: Window | None = None
        self.is_speech = False
        self.ends: list[int] = []  # of utterances that were ended from outside
        self.events: list[LiveEvent] = []
        self.finals: list[Word] = []  # of the segments
        self.known: list[Word] = []  # every word that was ever told to be final
        self.utterance_end_s = 0.0

    def act(self, action: tuple[str, int]) -> None:
        match action:
            case ("push", samples):
                self.push(samples)
            case ("vad", ago):
                self.out_of_a_word()
                self.is_speech = not self.is_speech
                position = self.session.position
                if not self.is_speech:
                    self.ends.append(position)
                self.push(0, [VadEvent(self.is_speech, max(0, position - ago), position)])
            case ("commit", _):
                self.out_of_a_word()
                self.ends.append(self.session.position)
                self.session.commit()
            case ("step", _) if self.window is None:
                self.window = self.session.next_window()
                assert self.window is None or len(self.window.samples) <= self.windows.max_window
                assert self.session.next_window() is None
            case ("step", _):
                assert self.window is not None
                self.session.add(decoded(self.window, self.words))
                self.window = None
        self.check(self.session.take_events())

    def out_of_a_word(self) -> None:
        """Push audio up to the end of a word that is being said: nothing could save one that is cut in two."""
        position = self.session.position
        end = next((w.end_sample for w in self.words if w.start_sample < position < w.end_sample), position)
        self.push(end - position)

    def push(self, samples: int, events: Sequence[VadEvent] = ()) -> None:
        """Push audio whose words the VAD takes for speech, if only for possible speech."""
        end = self.session.position + samples
        heard = max((min(word.end_sample, end) for word in self.words if word.start_sample < end), default=0)
        self.session.push(silence(samples), events, heard)

    def finish(self) -> None:
        end = max([self.session.position, *(word.end_sample for word in self.words)])
        self.push(end - self.session.position)
        self.session.finish()
        while not any(isinstance(event, Done) for event in self.events):
            self.act(("step", 0))

    def check(self, events: list[LiveEvent]) -> None:
        for event in events:
            assert not any(isinstance(earlier, Done) for earlier in self.events[-1:])
            told = list(self.finals)
            match event:
                case SegmentFinal():
                    self.finals += event.segment.words
                    told = list(self.finals)
                    # A word whose first frame is not complete when its utterance ends belongs to the next one.
                    assert event.segment.start_s > self.utterance_end_s - FRAME_SAMPLES / SAMPLE_RATE
                case Hypothesis():
                    told += event.final
                    times = [word.start_s for word in (*told, *event.partial)]
                    assert times == sorted(times)
                case UtteranceFinal():
                    assert event.at_s >= self.utterance_end_s
                    assert all(word.end_s <= event.at_s for word in self.finals)
                    self.utterance_end_s = event.at_s
            shared = min(len(told), len(self.known))
            assert told[:shared] == self.known[:shared], "a final word changed"
            self.known = max(told, self.known, key=len)
            self.events.append(event)


PUSHES = [("push", samples) for samples in (1, 160, 1_600, 6_400, 6_400, 6_400, 12_800, 40_000, 200_000)]
ENDS = [("commit", 0), ("vad", 0), ("vad", 512), ("vad", 12_800)]
ACTIONS = st.sampled_from([*PUSHES, *[("step", 0)] * 12, *ENDS])


@given(
    gaps=st.lists(st.integers(0, 30), min_size=10, max_size=60),
    actions=st.lists(ACTIONS, min_size=60, max_size=200),
    windows=st.sampled_from([WINDOWS, SHORT_WINDOWS]),
    pauses_end=st.booleans(),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large])
def test_any_interleaving(gaps: list[int], actions: list[tuple[str, int]], windows: LiveWindows, pauses_end: bool) -> None:
    """No word is lost, doubled, or changed once final; times never go back; every end from outside ends an utterance there."""
    words = said(gaps)
    conversation = Conversation(words, windows, pauses_end=pauses_end)
    for action in actions:
        conversation.act(action)
    conversation.finish()
    final = final_tokens(conversation.events)
    assert [token.token_id for token in final] == [token.token_id for token in words]
    assert [(token.start_sample, token.end_sample) for token in final] == [(w.start_sample, w.end_sample) for w in words]
    done = conversation.events[-1]
    assert isinstance(done, Done)
    assert [token for segment in done.segments for token in segment.tokens] == final
    assert done.duration_s == conversation.session.position / SAMPLE_RATE
    ends_s = [event.at_s for event in conversation.events if isinstance(event, UtteranceFinal)]
    assert {end / SAMPLE_RATE for end in conversation.ends} <= set(ends_s)
    speech = [
        isinstance(event, SpeechStarted) for event in conversation.events if isinstance(event, SpeechStarted | SpeechStopped)
    ]
    assert speech == [n % 2 == 0 for n in range(len(speech))]
