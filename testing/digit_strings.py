"""Speech with known words and times: single spoken digits joined into strings.

Used to train and to judge the bundled model, and by tests and benchmarks that need audio whose every word and word time is known.

A bank holds trimmed recordings: `bank[speaker][digit]` is a list of float32 arrays at 16 kHz. `compose` joins recordings of one
speaker with silences between and says where each word lies. A pause of `SENTENCE_PAUSE_S` or more ends a sentence: the word
before it takes a full stop, the word after it a capital letter.
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
Bank = dict[str, dict[int, list[Samples]]]

SAMPLE_RATE = 16_000
SENTENCE_PAUSE_S = 0.6
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRIM_MARGIN = 160
TRIM_LEVEL = 0.02

ESPEAK_VOICES = tuple(
    [f"en-us+{v}" for v in ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")]
    + [f"en-gb+{v}" for v in ("m1", "m3", "f2", "f4")]
    + ["en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029"]
)
FLITE_VOICES = ("awb", "kal16", "rms", "slt")


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word and the half-open span of samples where it is audible."""

    text: str
    digit: int
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class DigitString:
    """Audio with its transcript: float32 samples at 16 kHz in [-1, 1] and the words in order."""

    samples: Samples
    words: tuple[SpokenWord, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class Pauses:
    """Ranges of silence in seconds, drawn uniformly."""

    lead_s: tuple[float, float] = (0.05, 0.8)
    within_sentence_s: tuple[float, float] = (0.03, 0.32)
    between_sentences_s: tuple[float, float] = (0.66, 1.4)
    trail_s: tuple[float, float] = (0.1, 1.4)


USUAL_PAUSES = Pauses()


def trim(samples: Samples) -> Samples:
    """Scale to peak 1 and cut what is quieter than 2 % of the peak off both ends, leaving a margin of 10 ms."""
    peak = float(np.abs(samples).max())
    loud = np.flatnonzero(np.abs(samples) > TRIM_LEVEL * peak)
    framed = np.pad(samples, TRIM_MARGIN)[loud[0] : loud[-1] + 1 + 2 * TRIM_MARGIN]
    return np.asarray(framed / peak, dtype=np.float32)


def read(path: Path) -> Samples:
    """Read any file libsndfile knows, take its first channel, resample to 16 kHz, trim."""
    samples, rate = sf.read(path, dtype="float32", always_2d=True)
    return trim(soxr.resample(samples[:, 0], rate, SAMPLE_RATE).astype(np.float32))


def load_bank(folder: Path, indexes: Iterable[int] | None = None) -> Bank:
    """Load recordings named `{digit}_{speaker}_{index}.wav` (the naming of the Free Spoken Digit Dataset), or only some
    indexes."""
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
    """Let espeak-ng and flite speak every digit `variants` times per voice, varying speed and pitch."""
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
    """Play faster or slower, pitch included, by linear interpolation (good enough for training material)."""
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
    """Join one recording per digit; sentences get a random number of words within `sentence_words`."""
    parts: list[Samples] = [_silence(rng, pauses.lead_s)]
    words: list[SpokenWord] = []
    position, left_in_sentence, first = len(parts[0]), rng.randint(*sentence_words), True
    for place, digit in enumerate(digits):
        recording = rng.choice(recordings[digit])
        if speed != (1.0, 1.0):
            recording = change_speed(recording, rng.uniform(*speed))
        left_in_sentence -= 1
        last_of_all = place == len(digits) - 1
        ends_sentence = left_in_sentence == 0 or last_of_all
        name = DIGIT_NAMES[digit].capitalize() if first else DIGIT_NAMES[digit]
        start, end = position + TRIM_MARGIN, position + len(recording) - TRIM_MARGIN
        words.append(SpokenWord(name + "." if ends_sentence else name, digit, start, end))
        span = pauses.trail_s if last_of_all else pauses.between_sentences_s if ends_sentence else pauses.within_sentence_s
        parts += [recording * rng.uniform(*gain), _silence(rng, span)]
        position += len(parts[-2]) + len(parts[-1])
        first = ends_sentence
        if ends_sentence:
            left_in_sentence = rng.randint(*sentence_words)
    return DigitString(np.concatenate(parts).astype(np.float32), tuple(words))


def to_int16(samples: Sequence[float] | np.ndarray) -> NDArray[np.int16]:
    """Float samples in [-1, 1] as int16, with head room."""
    return np.round(np.clip(np.asarray(samples) * 0.7, -1, 1) * 32767).astype(np.int16)


def with_pauses(strings: Iterable[DigitString]) -> NDArray[np.int16]:
    """Strings one after the other, each with a second of silence after it, int16 [samples]."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    return to_int16(np.concatenate([part for string in strings for part in (string.samples, pause)]))


def _silence(rng: random.Random, span_s: tuple[float, float]) -> Samples:
    return np.zeros(int(rng.uniform(*span_s) * SAMPLE_RATE), dtype=np.float32)
