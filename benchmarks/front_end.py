"""What the front end (upload, decoding, windows, merging, export) can do with an engine that costs nothing.

    python -m benchmarks.front_end [--minutes 60] [--formats mp3 opus m4a flac wav] [--at-once 2] [--rounds 3] [--json PATH]

Starts its own server with a simulated model whose batches take no time. For every format one file is uploaded alone, then the
first format several times at once (--at-once 2 4 8: with two, four and eight). Every round measures FFmpeg's single-threaded
conversion of the same file, then the server; figures are medians of the rounds. Without the program `ffmpeg`, PyAV's plain loop
takes its place. The files are made once, in build/front_end.
"""

import argparse
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import httpx2

from benchmarks.report import (
    ELSEWHERE,
    SERVER_KINDS,
    SPREAD,
    Meter,
    Usage,
    add_json_option,
    cpu_cells,
    cpu_head,
    elsewhere_cell,
    finish,
    machine,
    simulated_model,
    simulated_server,
    spread_cell,
    table,
)
from serve_app.window import SAMPLE_RATE
from testing.cpu_time import Kind
from testing.decoding import plain_loop
from testing.paths import ROOT
from testing.server import Server
from testing.speech_noise import SPEECH_FORMATS, write

FILES = ROOT / "build" / "front_end"

MIN_WORDS_PER_S = 0.8
"""The simulated engine recognises about 1.7 words per second in these files; fewer than this means that windows are missing."""

GPU_RATE = 6_000
"""One H200 with NeMo's own decoder, x real time."""

Reference = Callable[[Path], float]
"""Converts a file to 16 kHz mono int16 on one thread, and returns the seconds that it took."""


@dataclass(slots=True)
class Row:
    """Results of one kind of upload, one item per round."""

    format: str
    at_once: int
    audio_s: float
    """Of the files of one round together."""
    server_s: list[float] = field(default_factory=list)
    reference_s: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.format if self.at_once == 1 else f"{self.at_once} {self.format} at once"

    @property
    def server_rate(self) -> float:
        return self.audio_s / median(self.server_s)

    @property
    def reference_rate(self) -> float:
        return self.audio_s / self.at_once / median(self.reference_s)

    def cpu_s_per_hour(self, kind: Kind) -> float:
        return sum(usage.cpu_s[kind] for usage in self.usages) / len(self.usages) * 3600 / self.audio_s

    @property
    def server_cpu_s_per_hour(self) -> float:
        return sum(self.cpu_s_per_hour(kind) for kind in SERVER_KINDS)


def ffmpeg_s(path: Path) -> float:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-i", str(path)]
    started = time.perf_counter()
    subprocess.run([*command, "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "-y", "/dev/null"], check=True)
    return time.perf_counter() - started


def plain_loop_s(path: Path) -> float:
    started = time.perf_counter()
    plain_loop(path)
    return time.perf_counter() - started


@contextmanager
def reference() -> Iterator[tuple[str, Reference]]:
    """What there is to compare with, and its name."""
    if shutil.which("ffmpeg"):
        yield f"FFmpeg {output_of('ffmpeg', '-version').split()[2]}", ffmpeg_s
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield f"PyAV {version('av')}, plain loop", lambda path: process.submit(plain_loop_s, path).result()


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def noise_file(name: str, minutes: float) -> Path:
    """A file of noise that sounds like speech, in the format SPEECH_FORMATS[name]; made when it is missing."""
    path = FILES / f"{minutes:g}-minutes.{name}"
    if not path.exists():
        print(f"making {path.relative_to(ROOT)}", flush=True)
        FILES.mkdir(parents=True, exist_ok=True)
        write(path, SPEECH_FORMATS[name], 60 * minutes)
    return path


def upload(server: Server, path: Path, audio_s: float) -> None:
    """Raises RuntimeError if the transcript does not cover the file."""
    with path.open("rb") as file, httpx2.Client(base_url=server.url, timeout=None) as client:
        answer = client.post(
            "/v1/audio/transcriptions", files={"file": file}, data={"response_format": "verbose_json"}
        ).raise_for_status()
    transcript = answer.json()
    words = len(transcript["text"].split())
    if abs(transcript["duration"] - audio_s) > 1 or words < MIN_WORDS_PER_S * audio_s:
        raise RuntimeError(f"{path.name}: {words} words in {transcript['duration']} s of {audio_s} s")


def measure(server: Server, row: Row, path: Path, reference_s: Reference, rounds: int) -> None:
    """Add the rounds to the row, after a warm-up."""
    file_s = row.audio_s / row.at_once
    with ThreadPoolExecutor(row.at_once) as clients:

        def upload_all() -> None:
            list(clients.map(lambda _: upload(server, path, file_s), range(row.at_once)))

        reference_s(path)
        upload_all()
        for _ in range(rounds):
            row.reference_s.append(reference_s(path))
            meter = Meter(server)
            upload_all()
            row.usages.append(meter.stop())
            row.server_s.append(row.usages[-1].wall_s)


def rates(rows: Sequence[Row], reference_name: str) -> str:
    beside = f"{reference_name}, one thread, x"
    head = ["upload", "server, x real time", SPREAD, beside, "ratio", ELSEWHERE]
    return table(
        head,
        [
            [
                row.name,
                f"{row.server_rate:,.0f}",
                spread_cell([row.audio_s / seconds for seconds in row.server_s]),
                f"{row.reference_rate:,.0f}",
                f"{row.server_rate / row.reference_rate:.2f}",
                elsewhere_cell(row.usages),
            ]
            for row in rows
        ],
    )


def costs(rows: Sequence[Row]) -> str:
    return table(
        cpu_head("CPU s per hour of audio"),
        [[row.name, *cpu_cells(row.usages, len(row.usages) * row.audio_s / 3600)] for row in rows],
    )


def on_paper(rows: Sequence[Row]) -> str:
    """From CPU seconds alone: what one process can do with one core, and what cores can do if processes keep all of them busy."""

    def one_process(row: Row, kind: Literal["proxy", "ingress", "decoder"]) -> str:
        return f"{3600 / cpu_s:,.0f}" if (cpu_s := row.cpu_s_per_hour(kind)) else "-"

    head = ["x real time, on paper", "one proxy", "one ingress", "one decoder", "16 cores", "100 cores"]
    return table(
        [*head, "cores per GPU", "cores per 8 GPUs"],
        [
            [
                row.name,
                *(one_process(row, kind) for kind in ("proxy", "ingress", "decoder")),
                *(f"{cores * 3600 / row.server_cpu_s_per_hour:,.0f}" for cores in (16, 100)),
                *(f"{gpus * GPU_RATE * row.server_cpu_s_per_hour / 3600:,.0f}" for gpus in (1, 8)),
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of a file")
    parser.add_argument("--formats", nargs="+", choices=SPEECH_FORMATS, default=list(SPEECH_FORMATS))
    parser.add_argument("--at-once", type=int, nargs="*", default=[2], help="numbers of files of the first format")
    parser.add_argument("--rounds", type=int, default=3)
    add_json_option(parser)
    options = parser.parse_args()
    audio_s = 60 * options.minutes
    paths = {name: noise_file(name, options.minutes) for name in options.formats}
    rows = [Row(name, 1, audio_s) for name in options.formats]
    rows += [Row(options.formats[0], count, count * audio_s) for count in options.at_once]
    # The niceness is that of FFmpeg, so that other load slows both.
    with reference() as (reference_name, reference_s), simulated_server(simulated_model()) as server:
        for row in rows:
            measure(server, row, paths[row.format], reference_s, options.rounds)
            print(f"{row.name}: {row.server_rate:,.0f} x real time", flush=True)
    finish(
        options.json,
        machine(reference=reference_name),
        f"{options.minutes:g} minutes per file, median of {options.rounds} rounds",
        [rates(rows, reference_name), costs(rows), on_paper(rows)],
        minutes=options.minutes,
        rows=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
