"""Audio of a given length for the benchmarks, and the text that an engine makes of it."""

import random
from collections.abc import Sequence

import numpy as np

from serve_app.audio.dither import without_zeros
from serve_app.chunking import windows
from serve_app.output.segments import Segmenter
from serve_app.settings import WindowSettings
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.digit_strings import Bank, compose, to_int16

STRING_DIGITS = 4
"""Digits of a string, which is in one voice."""

HOARSENESS = 0.5
"""Level of the noise in a hoarse voice, as a fraction of the voice's."""


def spoken_digits(bank: Bank, seconds: float, seed: int) -> Samples:
    """Strings of digits, in one voice after the other, int16 [samples]; silence follows the last string that fits."""
    rng = random.Random(seed)
    voices, audio, end = sorted(bank), np.zeros(round(seconds * SAMPLE_RATE), np.float32), 0
    rng.shuffle(voices)
    for number in range(len(audio)):
        digits = [rng.randrange(10) for _ in range(STRING_DIGITS)]
        string = compose(bank[voices[number % len(voices)]], digits, rng).samples
        if end + len(string) > len(audio):
            break
        audio[end : end + len(string)] = string
        end += len(string)
    return to_int16(audio)


def hoarse(samples: Samples, seed: int) -> Samples:
    """Speech, int16 [samples], with noise that is as loud as HOARSENESS of each of its frames.

    A voice alone is too quiet between two vibrations for the simulated engine, which would find few words in it. A voice activity
    detector still takes it for speech.
    """
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES).astype(np.float32)
    levels = np.sqrt(np.vecdot(frames, frames) / FRAME_SAMPLES)
    noise = HOARSENESS * levels[:, None] * np.random.default_rng(seed).standard_normal(frames.shape, np.float32)
    return np.asarray(np.clip(np.round(frames + noise), -32768, 32767), np.int16).ravel()


def cut(samples: Samples, settings: WindowSettings) -> list[Samples]:
    """The windows of a file, int16 [samples] each, as a server with these settings sends them to its models."""
    return [without_zeros(window).samples for window in windows([samples], settings.window_s, settings.overlap_s)]


def text_of(tokens: Sequence[Token]) -> str:
    """The text of a file of one window."""
    segmenter = Segmenter()
    return " ".join(segment.text for segment in segmenter.add(tokens) + segmenter.finish())
