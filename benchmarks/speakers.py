"""What it costs to find who speaks: the steps of diarizers beside the recognition of the same audio.

    python -m benchmarks.speakers [--asr 0.6b] [--diarizers bundled published] [--chunks 15 30] [--json PATH]

`published` has the shape of diar_streaming_sortformer_4spk-v2 and random weights. A step is measured with full caches, as are all
steps but the first ones of a recording. The model and the diarizers are in one process, on the same device, and take turns in
every round; figures are medians of the rounds. The last column is the time of the diarizer as a share of that of the model, which
decodes as many seconds of audio in windows of 30 s, without the overlaps of windows that a server decodes twice.
"""

import argparse
import logging
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.report import add_json_option, finish, machine, table
from benchmarks.shapes import SHAPES, model_file
from benchmarks.speech import spoken_digits
from serve_app.diarization.sortformer import SortformerEngine
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.model_source import bundled_diarizer_path
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.digit_strings import load_bank
from testing.paths import DIGITS
from testing.random_models import save_random_sortformer
from tools.sortformer import SORTFORMER_4SPK

WINDOW_S = 30
"""Audio of a window of the model, seconds."""

WARM_UP_ROUNDS = 1


@dataclass(slots=True)
class Times:
    """What was measured, seconds per step."""

    name: str
    chunk_s: float
    """New audio of a step."""
    step_s: list[float] = field(default_factory=list)

    @property
    def per_audio_s(self) -> float:
        return median(self.step_s) / self.chunk_s


class Diarizing:
    """Steps of one diarizer, the state of the step before in each."""

    def __init__(self, name: str, engine: SortformerEngine, audio: Samples) -> None:
        self.engine, shape = engine, engine.shape
        self.times = Times(f"{name}, {engine.info.precision}", shape.chunk_samples / SAMPLE_RATE)
        self._window = audio[: shape.left_samples + shape.chunk_samples + shape.right_samples]
        self._state: bytes | None = None
        cache_frames = 2 * engine.cache_frames
        for _ in range(-(-cache_frames * FRAME_SAMPLES // shape.chunk_samples)):
            self.step()
        self.times.step_s.clear()

    def step(self) -> None:
        started = time.perf_counter()
        shape = self.engine.shape
        # The probabilities come back as an array, so a GPU has finished.
        _, self._state = self.engine.step(self._window, shape.left_samples, shape.right_samples, self._state)
        self.times.step_s.append(time.perf_counter() - started)


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[list[Times], Times, str]:
    audio = spoken_digits(load_bank(DIGITS), 2 * WINDOW_S + max(arguments.chunks), seed=1)
    files = {"bundled": bundled_diarizer_path(), "published": folder / "published.nemo"}
    if "published" in arguments.diarizers:
        save_random_sortformer(files["published"], SORTFORMER_4SPK)
    with model_file(arguments.asr) as path:
        model = ParakeetEngine.load(path)
    threads = arguments.threads
    diarizers = [
        Diarizing(name, SortformerEngine.load(files[name], chunk_s=chunk_s, cpu_threads=threads), audio)
        for name in arguments.diarizers
        for chunk_s in (arguments.chunks if name != "bundled" else [None])
    ]
    windows = [audio[: WINDOW_S * SAMPLE_RATE]] * arguments.windows
    recognition = Times(arguments.asr, WINDOW_S * len(windows))
    for _ in range(WARM_UP_ROUNDS + arguments.rounds):
        started = time.perf_counter()
        model.transcribe(windows)
        recognition.step_s.append(time.perf_counter() - started)
        for diarizer in diarizers:
            diarizer.step()
    for times in (recognition, *(diarizer.times for diarizer in diarizers)):
        del times.step_s[:WARM_UP_ROUNDS]
    return [diarizer.times for diarizer in diarizers], recognition, f"{model.info.device} {model.info.precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asr", choices=SHAPES, default="0.6b")
    parser.add_argument("--diarizers", nargs="+", choices=("bundled", "published"), default=["bundled", "published"])
    parser.add_argument("--chunks", nargs="+", type=float, default=[15.04, 30.0], help="of `published`, seconds; 15.04: its own")
    parser.add_argument("--windows", type=int, default=2, help="windows of 30 s in a batch of the model")
    parser.add_argument("--threads", type=int, default=0, help="threads of the diarizers on a CPU; 0: as a server would")
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        diarizers, recognition, runs = measure(arguments, Path(folder))
    head = ["diarizer", "chunk, s", "step, ms", "audio per second", f"share of the time of {arguments.asr}"]
    lines = [
        [t.name, f"{t.chunk_s:.1f}", f"{1000 * median(t.step_s):.0f}", f"{1 / t.per_audio_s:.0f}", f"{share:.1%}"]
        for t in diarizers
        for share in (t.per_audio_s / recognition.per_audio_s,)
    ]
    lines.append([f"{arguments.asr} (model)", f"{recognition.chunk_s:.1f}", f"{1000 * median(recognition.step_s):.0f}",
                  f"{1 / recognition.per_audio_s:.0f}", ""])  # fmt: skip
    note = f"{arguments.rounds} rounds; the model on {runs}"
    finish(arguments.json, machine(), note, [table(head, lines)], times=[asdict(t) for t in (*diarizers, recognition)])


if __name__ == "__main__":
    main()
