"""What is left of the bare engine's speed when it is served: the bundled model, in files of exactly one window.

    python -m benchmarks.served [--seconds 8] [--rounds 3] [--clients 1 4 16] [--shape bundled] [--json PATH]

Starts its own server with configs/demo.yaml. Every round measures, for so many seconds each: the bare engine in a process of its
own, on the windows that the server would cut, with every batch size; then the server in closed loops of so many clients; then in
open loops with Poisson arrivals at fractions of the round's best closed loop, whose latencies count from the scheduled arrival.
Ratios are of one round, and every figure but the percentiles of latency is the median of the rounds. All texts must be those of
the bare engine. With `--shape` another model, with random weights, takes the bundled one's place; its texts are not compared, as
rounding may change them from batch to batch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import yaml

from benchmarks.load import Load, LoadProcess, Request, poisson_arrivals, transcription
from benchmarks.report import (
    CONFIG,
    ELSEWHERE,
    PLAIN_NICENESS,
    SPREAD,
    Meter,
    Usage,
    add_json_option,
    cpu_cells,
    cpu_head,
    elsewhere_cell,
    finish,
    machine,
    percentiles,
    spread_cell,
    table,
)
from benchmarks.shapes import SHAPES, model_file
from benchmarks.speech import cut, spoken_digits, text_of
from serve_app.engine.batch_policy import max_batch_windows
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.settings import ModelSettings, Settings
from serve_app.window import Samples
from testing import media
from testing.digit_strings import load_bank
from testing.paths import DIGITS
from testing.server import Server, serve_run

FILE_S = 30.0
"""Length of a file: one window, seconds."""

FILES = 16
"""Number of different files."""

BATCHES = (1, 2, 4, 8)
"""Windows in a batch of the bare engine. The server's own maximum is in the report."""

OPEN_LOADS = (0.5, 0.8)
"""Rates of the open loops, as fractions of the best closed loop."""

WARM_UP_S = 2.0

QUIETER = 64
"""By what the audio for models with random weights is divided."""


@dataclass(slots=True)
class Bare:
    """The bare engine with one batch size, one item per round."""

    batch: int
    rtfx: list[float] = field(default_factory=list)
    """Seconds of audio per second."""
    cpu_s_per_hour: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    """`client` is the bare engine, the rest the idle server."""


@dataclass(slots=True)
class Served:
    """One kind of load on the server, one item per round."""

    name: str
    clients: int
    """0 in an open loop."""
    load: float
    """Rate of an open loop, as a fraction of the best closed loop; 0 in a closed loop."""
    rtfx: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    """Of the requests of all rounds."""

    def add(self, load: Load, usage: Usage) -> None:
        self.rtfx.append(load.requests_per_s * FILE_S)
        self.requests.append(len(load.latencies_s))
        self.usages.append(usage)
        self.latencies_s += load.latencies_s


class BareEngine:
    """The engine of a replica, in the process that makes this."""

    loaded: "BareEngine"

    def __init__(self, path: Path, model: ModelSettings, windows: Sequence[Samples]) -> None:
        self._engine = ParakeetEngine.load(path, device="cpu", precision=model.precision, cpu_threads=model.cpu_threads)
        self._windows = windows

    def texts(self) -> list[str]:
        return [text_of(self._engine.transcribe([window])[0]) for window in self._windows]

    def run(self, batch: int, seconds: float) -> tuple[int, float, float]:
        """Decode batches for so long. The number of windows decoded, the seconds that it took, and its CPU seconds."""
        done, cpu_s, started_s = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() < started_s + seconds:
            self._engine.transcribe([self._windows[n % len(self._windows)] for n in range(done, done + batch)])
            done += batch
        return done, time.perf_counter() - started_s, time.process_time() - cpu_s


def load_bare(path: Path, model: ModelSettings, windows: Sequence[Samples]) -> None:
    BareEngine.loaded = BareEngine(path, model, windows)


def bare_texts() -> list[str]:
    return BareEngine.loaded.texts()


def run_bare(batch: int, seconds: float) -> tuple[int, float, float]:
    return BareEngine.loaded.run(batch, seconds)


def measured(server: Server, row: Served, run: Callable[[], Load]) -> None:
    meter = Meter(server)
    load = run()
    row.add(load, meter.stop(load.cpu_s))


def one_round(
    server: Server,
    engine: ProcessPoolExecutor,
    clients: LoadProcess,
    requests: Sequence[Request],
    bare: Sequence[Bare],
    served: Sequence[Served],
    seconds: float,
) -> None:
    """Add one round to every row."""
    for row in bare:
        meter = Meter(server)
        windows, wall_s, cpu_s = engine.submit(run_bare, row.batch, seconds).result()
        row.usages.append(meter.stop(cpu_s))
        row.rtfx.append(windows * FILE_S / wall_s)
        row.cpu_s_per_hour.append(cpu_s * 3600 / (windows * FILE_S))
    closed = [row for row in served if row.clients]
    for loop in closed:
        measured(server, loop, partial(clients.closed_loop, requests, loop.clients, seconds))
    best_per_s = max(loop.rtfx[-1] for loop in closed) / FILE_S
    for loop in served:
        if loop.load:
            arrivals_s = poisson_arrivals(loop.load * best_per_s, 2 * seconds, seed=len(loop.rtfx))
            measured(server, loop, partial(clients.open_loop, requests, arrivals_s))


def best_of(bare: Sequence[Bare]) -> Bare:
    return max(bare, key=lambda row: median(row.rtfx))


def ratio(rates: Sequence[float], to: Sequence[float]) -> float:
    """Median of the ratios of the rounds."""
    return median(a / b for a, b in zip(rates, to, strict=True))


def bare_table(bare: Sequence[Bare]) -> str:
    head = ["bare engine, windows per batch", "RTFx", SPREAD, "ratio to one", "CPU s per hour of audio"]
    return table(
        [*head, ELSEWHERE],
        [
            [
                str(row.batch),
                f"{median(row.rtfx):,.0f}",
                spread_cell(row.rtfx),
                f"{ratio(row.rtfx, bare[0].rtfx):.2f}",
                f"{median(row.cpu_s_per_hour):.2f}",
                elsewhere_cell(row.usages),
            ]
            for row in bare
        ],
    )


def served_table(served: Sequence[Served], bare: Sequence[Bare]) -> str:
    best = best_of(bare)
    ratios = ["to one window at a time", f"to the best batch ({best.batch})"]
    head = ["served", "RTFx", SPREAD, *ratios, "requests", "p50, ms", "p95", "p99", ELSEWHERE]
    return table(
        head,
        [
            [
                row.name,
                f"{median(row.rtfx):,.0f}",
                spread_cell(row.rtfx),
                *(f"{ratio(row.rtfx, to.rtfx):.2f}" if row.clients else "-" for to in (bare[0], best)),
                str(sum(row.requests)),
                *(f"{1000 * s:,.0f}" for s in percentiles(row.latencies_s)),
                elsewhere_cell(row.usages),
            ]
            for row in served
        ],
    )


def cpu_table(served: Sequence[Served]) -> str:
    return table(
        [*cpu_head("CPU s per hour of audio"), "busiest replica, cores", "busiest ingress, cores"],
        [
            [
                row.name,
                *cpu_cells(row.usages, sum(row.requests) * FILE_S / 3600),
                *(f"{median(usage.busiest_cores[kind] for usage in row.usages):.2f}" for kind in ("replica", "ingress")),
            ]
            for row in served
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="of each measurement of a round; open loops take twice as long"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="numbers of clients of the closed loops")
    parser.add_argument("--shape", choices=SHAPES, default="bundled", help="the model; all others have random weights")
    add_json_option(parser)
    options = parser.parse_args()
    with model_file(options.shape, speaks=True) as path:
        measure(options, path)


def measure(options: argparse.Namespace, path: Path) -> None:
    """Measure everything and print it."""
    settings = Settings(**yaml.safe_load(CONFIG.read_text())["applications"][0]["args"])
    (model,) = settings.models
    if options.shape != "bundled":
        model = model.model_copy(update={"source": str(path)})
    bank = load_bank(DIGITS)
    files = [spoken_digits(bank, FILE_S, seed) for seed in range(FILES)]
    if options.shape != "bundled":
        # Its tokens leave gaps. In quiet audio they are not decoded again.
        files = [samples // QUIETER for samples in files]
    cuts = [cut(samples, settings.windows_for(model)) for samples in files]
    if any(len(windows) != 1 for windows in cuts):
        raise RuntimeError(f"a file of {FILE_S} s is not one window")
    windows = [window for (window,) in cuts]
    bare = [Bare(batch) for batch in BATCHES]
    served = [Served(f"{count} clients" if count > 1 else "1 client", count, 0.0) for count in options.clients]
    served += [Served(f"arrivals at {load:.1f} of the best", 0, load) for load in OPEN_LOADS]
    with (
        ProcessPoolExecutor(1, get_context("spawn"), load_bare, (path, model, windows)) as engine,
        tempfile.TemporaryDirectory() as folder,
        serve_run(CONFIG, Path(folder), args={"models": [model.model_dump()]}, env=PLAIN_NICENESS) as server,
        LoadProcess(server.url) as clients,
    ):
        server.wait_for_state(model.name, "ready")
        max_audio_s = server.model(model.name)["replicas"][0]["max_batch_audio_s"]
        at_most = max_batch_windows(settings.batching, FILE_S, max_audio_s)
        texts = engine.submit(bare_texts).result() if options.shape == "bundled" else [None] * FILES
        requests = [transcription(media.wav(samples), text) for samples, text in zip(files, texts, strict=True)]
        clients.closed_loop(requests, max(options.clients), WARM_UP_S)
        for number in range(options.rounds):
            one_round(server, engine, clients, requests, bare, served, options.seconds)
            print(f"round {number + 1}: bare engine {bare[0].rtfx[-1]:,.0f}", end="", flush=True)
            print("", *(f"{row.name} {row.rtfx[-1]:,.0f}" for row in served), sep=", ", flush=True)
        finish(
            options.json,
            machine(),
            f"{options.shape} model, files of {FILE_S:.0f} s; {options.seconds:g} s per measurement, {options.rounds} rounds; "
            f"at most {at_most} windows in a batch of the server",
            [bare_table(bare), served_table(served, bare), cpu_table(served)],
            shape=options.shape,
            file_s=FILE_S,
            seconds=options.seconds,
            bare=[asdict(row) for row in bare],
            served=[asdict(row) for row in served],
        )


if __name__ == "__main__":
    main()
