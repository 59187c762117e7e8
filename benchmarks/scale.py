"""How many short requests a cluster takes with one ingress process and with several, and which process bounds it.

    python -m benchmarks.scale [--ingresses 1 2 4] [--clients 8 64] [--seconds 8] [--rounds 3] [--json PATH]

For every number of ingress replicas it starts a server whose simulated model takes no time, and sends clips of 9 s, each one
window, in closed loops of so many clients, which are in a process of their own. The second table has the CPU time of a request by
process, and what one ingress process could do with a core of its own: where the machine has too few cores for more processes to
help, that is the figure that tells how far they would.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from statistics import median

import numpy as np

from benchmarks.load import LoadProcess, Request, transcription
from benchmarks.report import (
    ELSEWHERE,
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
    simulated_model,
    simulated_server,
    spread_cell,
    table,
)
from benchmarks.speech import cut, text_of
from serve_app.engine.simulated import SimulatedEngine
from serve_app.merging.gaps import suspicious_gaps
from serve_app.settings import SimulationSettings, WindowSettings
from serve_app.window import Window
from testing import media
from testing.cpu_time import Kind
from testing.digit_strings import to_int16
from testing.speech_noise import parts

CLIP_S = 9.0

CLIPS = 16
"""Number of different clips."""

MODEL_REPLICAS = 2
"""So that none of them is the busiest process."""

WARM_UP_S = 3.0

BUSY: tuple[Kind, ...] = ("proxy", "ingress", "decoder", "replica")
"""The kinds of which the busiest process is shown."""


@dataclass(slots=True)
class Row:
    """One number of ingress replicas and of clients, one item per round."""

    ingresses: int
    clients: int
    requests: list[int] = field(default_factory=list)
    requests_per_s: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    """Of the requests of all rounds."""

    @property
    def name(self) -> str:
        return f"{self.ingresses} ingress{'es' * (self.ingresses > 1)}, {self.clients} clients"

    def cores(self, kind: Kind) -> float:
        """Of the busiest process of a kind."""
        return median(usage.busiest_cores[kind] for usage in self.usages)

    @property
    def all_cores(self) -> float:
        """Of all processes together, clients included."""
        return median(sum(usage.cpu_s.values()) / usage.wall_s for usage in self.usages)


def clips(seconds: float = CLIP_S) -> Iterator[Request]:
    """Requests whose clips are one window each, and leave no gap that would be decoded again."""
    engine = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0))
    for seed in count():
        samples = to_int16(np.concatenate(list(parts(seconds, seed)), axis=1)[0])
        windows = cut(samples, WindowSettings())
        tokens = engine.transcribe(windows)[0]
        if len(windows) == 1 and not suspicious_gaps(Window(0, 0, windows[0]), tokens):
            yield transcription(media.wav(samples), text_of(tokens))


def measure(rows: Sequence[Row], requests: Sequence[Request], seconds: float, rounds: int) -> None:
    """Add the rounds to the rows, all of the same number of ingress replicas, on a server of their own."""
    ingress = {"replicas": rows[0].ingresses, "cpus_per_replica": 0}
    model = simulated_model(replicas=MODEL_REPLICAS)
    with simulated_server(model, ingress=ingress) as server, LoadProcess(server.url) as process:
        process.closed_loop(requests, max(row.clients for row in rows), WARM_UP_S)
        for _ in range(rounds):
            for row in rows:
                meter = Meter(server)
                load = process.closed_loop(requests, row.clients, seconds)
                row.usages.append(meter.stop(load.cpu_s))
                row.requests.append(len(load.latencies_s))
                row.requests_per_s.append(load.requests_per_s)
                row.latencies_s += load.latencies_s


def rates(rows: Sequence[Row]) -> str:
    head = ["load", "requests/s", SPREAD, "x real time", "p50, ms", "p95", "p99"]
    return table(
        [*head, *(f"busiest {kind}, % of a core" for kind in BUSY), "all processes, cores", ELSEWHERE],
        [
            [
                row.name,
                f"{median(row.requests_per_s):,.0f}",
                spread_cell(row.requests_per_s),
                f"{median(row.requests_per_s) * CLIP_S:,.0f}",
                *(f"{1000 * s:,.0f}" for s in percentiles(row.latencies_s)),
                *(f"{100 * row.cores(kind):.0f}" for kind in BUSY),
                f"{row.all_cores:.2f}",
                elsewhere_cell(row.usages),
            ]
            for row in rows
        ],
    )


def costs(rows: Sequence[Row]) -> str:
    # Of one process with a core of its own.
    alone: tuple[Kind, ...] = ("proxy", "ingress")
    return table(
        [*cpu_head("CPU ms per request"), *(f"one {kind}, on paper, requests/s" for kind in alone)],
        [
            [
                row.name,
                *cpu_cells(row.usages, sum(row.requests) / 1000),
                *(f"{sum(row.requests) / sum(usage.cpu_s[kind] for usage in row.usages):,.0f}" for kind in alone),
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingresses", type=int, nargs="+", default=[1, 2, 4], help="numbers of ingress replicas")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64], help="numbers of clients of the closed loops")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    add_json_option(parser)
    options = parser.parse_args()
    requests = list(islice(clips(), CLIPS))
    rows = list[Row]()
    for ingresses in options.ingresses:
        rows += [Row(ingresses, clients) for clients in options.clients]
        measure(rows[-len(options.clients) :], requests, options.seconds, options.rounds)
        for row in rows[-len(options.clients) :]:
            print(f"{row.name}: {median(row.requests_per_s):,.0f} requests/s", flush=True)
    finish(
        options.json,
        machine(),
        f"clips of {CLIP_S:.0f} s, an engine that takes no time, {MODEL_REPLICAS} model replicas; {options.seconds:g} s per "
        f"measurement, median of {options.rounds} rounds",
        [rates(rows), costs(rows)],
        clip_s=CLIP_S,
        seconds=options.seconds,
        rows=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
