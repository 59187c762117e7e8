"""How much sooner one long file is done with more replicas.

    python -m benchmarks.long_file [--minutes 60] [--format m4a] [--replicas 1 4 8] [--rounds 3] [--json PATH]

For every number of replicas it starts a server whose simulated replicas take 0.04 s for a batch and 0.005 s for every second of
its padded audio, and uploads the same file alone: noise that sounds like speech, from build/front_end, where it is made when it
is missing. Times are medians of the rounds, after a warm-up with a file of MINUTES_OF_WARM_UP.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.front_end import noise_file, upload
from benchmarks.report import (
    ELSEWHERE,
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
    table,
)
from testing.server import Server
from testing.speech_noise import SPEECH_FORMATS

STEP_S, SECONDS_PER_AUDIO_S = 0.04, 0.005
"""Duration of a batch: fixed, and for every second of its padded audio."""

MINUTES_OF_WARM_UP = 2.0


@dataclass(slots=True)
class Row:
    """One number of replicas, one item per round."""

    replicas: int
    file_s: list[float] = field(default_factory=list)
    """From the first byte of the request to the last one of the answer."""
    windows: list[list[int]] = field(default_factory=list)
    """By replica."""
    batches: list[int] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.replicas} replica{'s' * (self.replicas > 1)}"

    @property
    def median_s(self) -> float:
        return median(self.file_s)


def decoded(server: Server) -> list[tuple[int, int]]:
    """Windows and batches of every replica so far, in the order of the report, once two reports in a row are the same."""
    counts = list[tuple[int, int]]()
    while True:
        now = [(replica["windows"], replica["batches"]) for replica in server.model("simulated")["replicas"]]
        if now == counts:
            return now
        counts = now
        # Replicas report every second.
        time.sleep(1.5)


def measure(row: Row, path: Path, audio_s: float, warm_up: Path, rounds: int) -> None:
    """Add the rounds to the row, on a server of its own."""
    with simulated_server(simulated_model(STEP_S, SECONDS_PER_AUDIO_S, replicas=row.replicas)) as server:
        upload(server, warm_up, 60 * MINUTES_OF_WARM_UP)
        for _ in range(rounds):
            before, meter = decoded(server), Meter(server)
            upload(server, path, audio_s)
            usage = meter.stop()
            after = decoded(server)
            row.file_s.append(usage.wall_s)
            row.usages.append(usage)
            windows, batches = (np.subtract(after, before)[:, column].tolist() for column in range(2))
            row.windows.append(windows)
            row.batches.append(sum(batches))


def times(rows: Sequence[Row], audio_s: float) -> str:
    first = rows[0]
    compared = f"speedup against {first.replicas}"
    head = ["replicas", "wall time, s", "fastest to slowest", "x real time", compared, "speedup per replica"]
    return table(
        [*head, "windows", "of one replica", "batches", "busiest ingress, cores", "busiest decoder, cores", ELSEWHERE],
        [
            [
                str(row.replicas),
                f"{row.median_s:.2f}",
                f"{min(row.file_s):.2f} to {max(row.file_s):.2f}",
                f"{audio_s / row.median_s:,.0f}",
                f"{first.median_s / row.median_s:.2f}",
                f"{first.median_s * first.replicas / (row.median_s * row.replicas):.2f}",
                f"{median(map(sum, row.windows)):.0f}",
                f"{min(map(min, row.windows))} to {max(map(max, row.windows))}",
                f"{median(row.batches):.0f}",
                *(f"{median(usage.busiest_cores[kind] for usage in row.usages):.2f}" for kind in ("ingress", "decoder")),
                elsewhere_cell(row.usages),
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the file")
    parser.add_argument("--format", choices=SPEECH_FORMATS, default="m4a")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    add_json_option(parser)
    options = parser.parse_args()
    audio_s = 60 * options.minutes
    path, warm_up = (noise_file(options.format, minutes) for minutes in (options.minutes, MINUTES_OF_WARM_UP))
    rows = [Row(replicas) for replicas in options.replicas]
    for row in rows:
        measure(row, path, audio_s, warm_up, options.rounds)
        print(f"{row.name}: {row.median_s:.2f} s", flush=True)
    cpu = table(
        cpu_head("CPU s per hour of audio"),
        [[row.name, *cpu_cells(row.usages, options.rounds * audio_s / 3600)] for row in rows],
    )
    finish(
        options.json,
        machine(),
        f"{options.minutes:g} minutes of {options.format}; a batch takes {STEP_S} s and {SECONDS_PER_AUDIO_S} s per second of "
        f"padded audio; median of {options.rounds} rounds",
        [times(rows, audio_s), cpu],
        minutes=options.minutes,
        format=options.format,
        rows=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
