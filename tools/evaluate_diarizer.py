"""Measure a diarizer on conversations of ten minutes.

    python -m tools.evaluate_diarizer RECORDINGS [--model MODEL.nemo] [--people NAME ...] [--conversations N]

RECORDINGS is the folder of the Free Spoken Digit Dataset; the recordings with indexes 5 to 9 are used, which the bundled diarizer
was not trained on. Every conversation has other people, as far as there are. The diarizer gets the audio as the server sends it:
chunk by chunk, the state as bytes. Prints a row per number of people and condition:

- DER: collar of 0.25 s, overlaps scored, best mapping (testing/diarization_error.py);
- words right: words of the conversation whose person has the highest mean probability over the word.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from serve_app.diarization.protocol import DiarizerEngine
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.conversations import Conversation, Style, Voice, converse
from testing.diarization_error import DiarizationError, Span, diarization_error, spans_of
from testing.digit_strings import Bank, load_bank, to_int16

TEST_INDEXES = range(5, 10)
"""Indexes of the recordings that are evaluated on."""

DURATION_S = 600.0
"""Length of a conversation, seconds."""

STYLE = Style(turn_words=(1, 12), gap_s=(0.1, 1.5), overlap_probability=0.2, overlap_s=(0.2, 1.2), level_db=(-6.0, 0.0))

ACTIVE = 0.5
"""Probability from which a person is taken to speak."""

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE


def conversations(bank: Bank, people: int, count: int, seed: int) -> Iterator[Conversation]:
    """Conversations of `people` people of the bank, of other ones in turn."""
    rng = random.Random(seed)
    groups = list(itertools.combinations(sorted(bank), people))
    rng.shuffle(groups)
    for place in range(count):
        group = list(groups[place % len(groups)])
        rng.shuffle(group)
        yield converse(bank, [Voice(name) for name in group], DURATION_S, rng, STYLE)


def diarize(engine: DiarizerEngine, samples: Samples) -> NDArray[np.float32]:
    """Probabilities of a whole recording, float32 [frames, speakers]."""
    shape, state, found = engine.shape, None, []
    for start in range(0, len(samples), shape.chunk_samples):
        end = min(start + shape.chunk_samples, len(samples))
        first, last = max(0, start - shape.left_samples), min(len(samples), end + shape.right_samples)
        probabilities, state = engine.step(samples[first:last], start - first, last - end, state)
        found.append(probabilities.astype(np.float32))
    return np.concatenate(found)


def error_of(conversation: Conversation, found: NDArray[np.float32]) -> DiarizationError:
    """Of the probabilities found for a conversation."""
    reference = [
        Span(turn_voice.name, turn.start_sample / SAMPLE_RATE, turn.end_sample / SAMPLE_RATE)
        for turn in conversation.turns
        for turn_voice in (conversation.voices[turn.speaker],)
    ]
    return diarization_error(reference, spans_of(found >= ACTIVE, FRAME_S))


def right_words(conversation: Conversation, found: NDArray[np.float32]) -> tuple[int, int]:
    """Words with the right speaker, and all words; speakers are mapped in the best way."""
    counts = np.zeros((len(conversation.voices), found.shape[1]), int)
    for turn in conversation.turns:
        for word in turn.words:
            first = word.start_sample // FRAME_SAMPLES
            span = found[first : max(first + 1, -(-word.end_sample // FRAME_SAMPLES))]
            counts[turn.speaker, int(span.mean(0).argmax())] += 1
    rows, columns = linear_sum_assignment(-counts)
    return int(counts[rows, columns].sum()), int(counts.sum())


def noisy(samples: Samples, noise_db: float, seed: int) -> Samples:
    """With white noise at a ratio of speech power to noise power, the power of speech as the mean over the recording."""
    power = float(np.mean(np.square(samples.astype(np.float64))))
    noise = np.random.default_rng(seed).standard_normal(len(samples)) * np.sqrt(power / 10 ** (noise_db / 10))
    return np.asarray(np.clip(np.round(samples + noise), -32768, 32767), np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--model", type=Path, help="a `.nemo` file (default: the bundled diarizer)")
    parser.add_argument("--people", nargs="*", help="only these people of the recordings")
    parser.add_argument("--counts", nargs="*", type=int, default=[2, 3, 4], help="people in a conversation")
    parser.add_argument("--conversations", type=int, default=3, help="conversations of each number of people")
    parser.add_argument("--noise-db", nargs="*", type=float, default=[20.0], help="ratios of speech to noise beside clean audio")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    from serve_app.diarization.sortformer import SortformerEngine
    from serve_app.model_source import bundled_diarizer_path

    engine = SortformerEngine.load(arguments.model or bundled_diarizer_path(), device="cpu")
    bank = load_bank(arguments.recordings, TEST_INDEXES)
    bank = {name: bank[name] for name in arguments.people or sorted(bank)}
    print("| people | condition | DER | missed | false alarm | confused | words right |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for people in arguments.counts:
        for noise_db in [None, *arguments.noise_db]:
            error, right, words = DiarizationError(0, 0, 0, 0), 0, 0
            for conversation in conversations(bank, people, arguments.conversations, arguments.seed):
                samples = to_int16(conversation.samples)
                samples = samples if noise_db is None else noisy(samples, noise_db, arguments.seed)
                found = diarize(engine, samples)
                error += error_of(conversation, found)
                more_right, more_words = right_words(conversation, found)
                right, words = right + more_right, words + more_words
            parts = (error.missed_s, error.false_alarm_s, error.confused_s)
            shares = " | ".join(f"{part / error.speech_s:.1%}" for part in parts)
            condition = "clean" if noise_db is None else f"white noise, {noise_db:.0f} dB"
            print(f"| {people} | {condition} | {error.rate:.1%} | {shares} | {right / words:.1%} |", flush=True)


if __name__ == "__main__":
    main()
