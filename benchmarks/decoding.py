"""CPU time of decoding files, compared with a plain loop of PyAV that decodes and resamples frame by frame.

    python -m benchmarks.decoding [--minutes 20] [--rounds 3] [--check]

Makes its own files: noise that sounds like somebody talking (testing/speech_noise.py). Rounds of the plain loop and of
AudioFile alternate; the figures are medians. With --check the exit status says whether AudioFile takes at most the CPU time of
the plain loop in every format.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serve_app.audio.decoding import AudioFile
from serve_app.window import SAMPLE_RATE
from testing.decoding import plain_loop
from testing.media import Format
from testing.speech_noise import write

MAX_RATIO = 1.0
"""Maximum CPU time of AudioFile, as a fraction of that of the plain loop."""


FORMATS = {
    "MP3": Format("mp3", "libmp3lame", 44_100, "stereo"),
    "Opus": Format("ogg", "libopus", 48_000, "stereo"),
    "M4A": Format("ipod", "aac", 44_100, "stereo"),
    "M4A, 16 kHz": Format("ipod", "aac", 16_000),
    "FLAC": Format("flac", "flac", 44_100, "stereo"),
    "FLAC, 16 kHz": Format("flac", "flac", 16_000),
    "WAV": Format("wav", "pcm_s16le", 48_000, "stereo"),
    "WAV, 16 kHz": Format("wav", "pcm_s16le", 16_000),
}


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
        for name, audio_format in FORMATS.items():
            path = Path(folder) / "audio"
            write(path, audio_format, seconds)
            rounds = [[cpu_s(decode, path, seconds) for decode in (plain_loop, audio_file)] for _ in range(arguments.rounds)]
            plain_s, file_s = (statistics.median(times) for times in zip(*rounds, strict=True))
            is_exceeded |= file_s > MAX_RATIO * plain_s
            name = f"{name}, {audio_format.layout}"
            print(f"{name:<26} {seconds / plain_s:>11,.0f}x {seconds / file_s:>11,.0f}x {file_s / plain_s:>18.2f}", flush=True)
    print("Nx: N times faster than real time, on one core")
    sys.exit(int(arguments.check and is_exceeded))


if __name__ == "__main__":
    main()
