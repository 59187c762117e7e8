"""CPU time of decoding files, compared with a plain loop of PyAV that decodes and resamples frame by frame.

    python -m benchmarks.decoding [--minutes 20] [--rounds 3] [--check]

Makes its own files: noise with the envelope of speech, with a noise of its own in each channel. Rounds of the plain loop and of
AudioFile alternate; the figures are medians. With --check the exit status says whether AudioFile takes at most the CPU time of
the plain loop in every format.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from serve_app.audio.decoding import AudioFile
from serve_app.window import SAMPLE_RATE
from testing import media

SYLLABLES_HZ = 4.0
"""Rate of the syllables whose loudness the noise has."""

MAX_RATIO = 1.0
"""Maximum CPU time of AudioFile, as a fraction of that of the plain loop."""


@dataclass(frozen=True, slots=True)
class Case:
    """A container and a codec, by FFmpeg's names, with the sample rate in Hz."""

    name: str
    container: str
    codec: str
    rate: int
    layout: str


CASES = (
    Case("MP3", "mp3", "libmp3lame", 44_100, "stereo"),
    Case("Opus", "ogg", "libopus", 48_000, "stereo"),
    Case("M4A", "ipod", "aac", 44_100, "stereo"),
    Case("M4A", "ipod", "aac", 16_000, "mono"),
    Case("FLAC", "flac", "flac", 44_100, "stereo"),
    Case("FLAC", "flac", "flac", 16_000, "mono"),
    Case("WAV", "wav", "pcm_s16le", 48_000, "stereo"),
    Case("WAV", "wav", "pcm_s16le", 16_000, "mono"),
)


def speech_like(seconds: float, rate: int, channels: int) -> NDArray[np.float32]:
    """Low-pass noise whose loudness rises and falls with syllables and pauses, float32 [samples, channels]."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * rate), dtype=np.float32) / rate
    loudness = np.clip(np.sin(2 * np.pi * SYLLABLES_HZ * t) * np.sin(2 * np.pi * 0.2 * t), 0, 1)
    noise = rng.normal(0, 0.1, (len(t) + 3, channels)).astype(np.float32)
    speech: NDArray[np.float32] = (noise[:-3] + noise[1:-2] + noise[2:-1] + noise[3:]) / 2 * loudness[:, None]
    return speech


def plain(path: Path) -> int:
    """Samples that the plain loop decodes."""
    samples = 0
    with path.open("rb") as file, av.open(file, "r") as container:
        container.streams.audio[0].codec_context.thread_count = 1
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        for frame in container.decode(audio=0):
            samples += sum(out.to_ndarray().size for out in resampler.resample(frame))
        return samples + sum(out.to_ndarray().size for out in resampler.resample(None))


def audio_file(path: Path) -> int:
    """Samples that AudioFile decodes."""
    with path.open("rb") as file:
        return sum(map(len, AudioFile(file).blocks()))


def cpu_s(decode: Callable[[Path], int], path: Path, seconds: float) -> float:
    """CPU time of one decoding, seconds. Raises RuntimeError if audio is missing."""
    started = time.process_time()
    samples = decode(path)
    taken_s = time.process_time() - started
    if abs(samples / SAMPLE_RATE - seconds) > 0.1:
        raise RuntimeError(f"{samples / SAMPLE_RATE:.2f} s of {seconds:.2f} s were decoded")
    return taken_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="length of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if a ratio is above {MAX_RATIO}")
    arguments = parser.parse_args()
    seconds, is_exceeded = 60 * arguments.minutes, False
    print(f"{'format':<26} {'plain loop':>12} {'AudioFile':>12} {'ratio of CPU time':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            path = Path(folder) / "audio"
            noise = speech_like(seconds, case.rate, av.AudioLayout(case.layout).nb_channels)
            path.write_bytes(media.encode(noise, case.rate, case.container, case.codec, layout=case.layout))
            del noise
            rounds = [[cpu_s(decode, path, seconds) for decode in (plain, audio_file)] for _ in range(arguments.rounds)]
            plain_s, file_s = (statistics.median(times) for times in zip(*rounds, strict=True))
            is_exceeded |= file_s > MAX_RATIO * plain_s
            name = f"{case.name}, {case.rate / 1000:g} kHz, {case.layout}"
            print(f"{name:<26} {seconds / plain_s:>11,.0f}x {seconds / file_s:>11,.0f}x {file_s / plain_s:>18.2f}", flush=True)
    print("Nx: N times faster than real time, on one core")
    sys.exit(int(arguments.check and is_exceeded))


if __name__ == "__main__":
    main()
