"""Speech with known words and times: single spoken digits joined into strings.

They train and evaluate the bundled model. Tests and benchmarks use them as audio in which every word and word time is known.

A bank holds trimmed recordings: `bank[speaker][digit]` is a list of float32 arrays at 16 kHz. `compose` joins recordings of one
speaker with silences between them and returns the time of each word. A pause of `SENTENCE_PAUSE_S` or more ends a sentence: the
word before the pause has a full stop, the word after it a capital letter.
"""

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""float32 [samples] at SAMPLE_RATE, in [-1, 1]."""

Bank = dict[str, dict[int, list[Samples]]]
"""Trimmed recordings by speaker and digit."""

SAMPLE_RATE = 16_000
"""Samples per second."""

SENTENCE_PAUSE_S = 0.6
"""Minimum pause between two sentences, seconds."""

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The word for each digit."""

TRIM_MARGIN = 160
"""Audio that `trim` keeps at either end, samples (10 ms)."""

TRIM_LEVEL = 0.02
"""Level below which `trim` removes audio at either end, as a fraction of the peak."""

ESPEAK_VOICES = tuple(
    [f"en-us+{v}" for v in ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")]
    + [f"en-gb+{v}" for v in ("m1", "m3", "f2", "f4")]
    + ["en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029"]
)
"""Voices of espeak-ng that `synthesise_bank` uses."""

FLITE_VOICES = ("awb", "kal16", "rms", "slt")
"""Voices of flite that `synthesise_bank` uses."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word and the half-open span of samples where it is audible."""

    text: str
    digit: int
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class DigitString:
    """Audio with its transcript: float32 [samples] at 16 kHz in [-1, 1] and the words in order."""

    samples: Samples
    words: tuple[SpokenWord, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class Pauses:
    """Ranges of the silences in a string, seconds; each silence is drawn uniformly from its range."""

    lead_s: tuple[float, float] = (0.05, 0.8)
    within_sentence_s: tuple[float, float] = (0.03, 0.32)
    between_sentences_s: tuple[float, float] = (0.66, 1.4)
    trail_s: tuple[float, float] = (0.1, 1.4)


USUAL_PAUSES = Pauses()
"""The pauses of a string unless others are asked for."""


def trim(samples: Samples) -> Samples:
    """Scale to a peak of 1 and remove audio below TRIM_LEVEL from both ends, except for a margin of TRIM_MARGIN."""
    peak = float(np.abs(samples).max())
    loud = np.flatnonzero(np.abs(samples) > TRIM_LEVEL * peak)
    framed = np.pad(samples, TRIM_MARGIN)[loud[0] : loud[-1] + 1 + 2 * TRIM_MARGIN]
    return np.asarray(framed / peak, dtype=np.float32)


def read(path: Path) -> Samples:
    """Read the first channel of any file that libsndfile supports, resample it to 16 kHz and trim it."""
    samples, rate = sf.read(path, dtype="float32", always_2d=True)
    return trim(soxr.resample(samples[:, 0], rate, SAMPLE_RATE).astype(np.float32))


def load_bank(folder: Path, indexes: Iterable[int] | None = None) -> Bank:
    """Load the recordings named `{digit}_{speaker}_{index}.wav`, as in the Free Spoken Digit Dataset.

    `indexes` selects some of them. Raises FileNotFoundError if the folder has no such recordings.
    """
    wanted = None if indexes is None else set(indexes)
    bank: Bank = {}
    for path in sorted(folder.glob("*_*_*.*")):
        digit, speaker, index = path.stem.split("_")
        if wanted is None or int(index) in wanted:
            bank.setdefault(speaker, {}).setdefault(int(digit), []).append(read(path))
    if not bank:
        raise FileNotFoundError(f"no recordings named {{digit}}_{{speaker}}_{{index}}.wav in {folder}")
    return bank


def synthesise_bank(variants: int, rng: random.Random) -> Bank:
    """Synthesise every digit `variants` times per voice of espeak-ng and flite, with random speed and pitch.

    Raises FileNotFoundError if one of the two programs is not installed.
    """
    for program in ("espeak-ng", "flite"):
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program} is not installed")
    bank: Bank = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digit.wav"
        for voice in ESPEAK_VOICES:
            for digit, name in enumerate(DIGIT_NAMES):
                for _ in range(variants):
                    speed, pitch = str(rng.randint(120, 210)), str(rng.randint(25, 75))
                    subprocess.run(["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(path), name], check=True)
                    bank.setdefault(voice.replace("_", "-"), {}).setdefault(digit, []).append(read(path))
        for voice in FLITE_VOICES:
            for digit, name in enumerate(DIGIT_NAMES):
                for _ in range(variants):
                    stretch = f"duration_stretch={rng.uniform(0.8, 1.25):.2f}"
                    subprocess.run(["flite", "-voice", voice, "--setf", stretch, "-t", name, "-o", str(path)], check=True)
                    bank.setdefault(f"flite-{voice}", {}).setdefault(digit, []).append(read(path))
    return bank


def change_speed(samples: Samples, factor: float) -> Samples:
    """Change speed and pitch by `factor` (above 1 is faster), by linear interpolation, which is good enough for training."""
    positions = np.arange(0, len(samples) - 1, factor)
    return np.asarray(np.interp(positions, np.arange(len(samples)), samples), dtype=np.float32)


def compose(
    recordings: dict[int, list[Samples]],
    digits: list[int],
    rng: random.Random,
    pauses: Pauses = USUAL_PAUSES,
    *,
    sentence_words: tuple[int, int] = (1, 6),
    speed: tuple[float, float] = (1.0, 1.0),
    gain: tuple[float, float] = (0.5, 1.0),
) -> DigitString:
    """Join a random recording of each digit into one string.

    The ranges are drawn from uniformly: `sentence_words` is the number of words in a sentence, `speed` the speed factor and
    `gain` the factor of the amplitude of each word.
    """
    parts: list[Samples] = [_silence(rng, pauses.lead_s)]
    words: list[SpokenWord] = []
    position, left_in_sentence, starts_sentence = len(parts[0]), rng.randint(*sentence_words), True
    for place, digit in enumerate(digits):
        recording = rng.choice(recordings[digit])
        if speed != (1.0, 1.0):
            recording = change_speed(recording, rng.uniform(*speed))
        left_in_sentence -= 1
        is_last = place == len(digits) - 1
        ends_sentence = left_in_sentence == 0 or is_last
        name = DIGIT_NAMES[digit].capitalize() if starts_sentence else DIGIT_NAMES[digit]
        start, end = position + TRIM_MARGIN, position + len(recording) - TRIM_MARGIN
        words.append(SpokenWord(name + "." if ends_sentence else name, digit, start, end))
        span = pauses.trail_s if is_last else pauses.between_sentences_s if ends_sentence else pauses.within_sentence_s
        parts += [recording * rng.uniform(*gain), _silence(rng, span)]
        position += len(parts[-2]) + len(parts[-1])
        starts_sentence = ends_sentence
        if ends_sentence:
            left_in_sentence = rng.randint(*sentence_words)
    return DigitString(np.concatenate(parts).astype(np.float32), tuple(words))


def to_int16(samples: Sequence[float] | np.ndarray) -> NDArray[np.int16]:
    """Convert float [samples] in [-1, 1] to int16, scaled by 0.7 to leave headroom."""
    return np.round(np.clip(np.asarray(samples) * 0.7, -1, 1) * 32767).astype(np.int16)


def with_pauses(strings: Iterable[DigitString]) -> NDArray[np.int16]:
    """Join strings into int16 [samples], with one second of silence after each string."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    return to_int16(np.concatenate([part for string in strings for part in (string.samples, pause)]))


def _silence(rng: random.Random, span_s: tuple[float, float]) -> Samples:
    return np.zeros(int(rng.uniform(*span_s) * SAMPLE_RATE), dtype=np.float32)
