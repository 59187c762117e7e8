"""Waits and replica-seconds of a burst, with replicas scaled by audio and by calls in flight.

    python -m benchmarks.autoscaling [--bursts file clips streams] [--policies audio calls] [--rounds 1] [--json PATH]

For every burst and policy it starts a server with one simulated replica loaded, sends the burst, and waits until one replica is
left. Bounds and delays are those of every policy:

- `audio`: the server as it is, by the audio that is still to be transcribed.
- `calls`: Serve's own policy, with the target that `audio` has until it knows more, one full batch per replica.
- `calls-prompt`: the same with counts that are a second old at most, like the demand, in the place of Serve's 10 s.

The bursts are a file of three hours, 500 clips of 30 s within 20 s, and 50 live streams of a minute that begin together. Replicas
are scaled down so that a machine with two cores shows them: a replica decodes 100 s of audio per second, takes 5 s to load
besides the start of its process, and stops after 20 s.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.front_end import noise_file, upload
from benchmarks.live_streams import run_streams
from benchmarks.load import LoadProcess, Request
from benchmarks.report import CONFIG, add_json_option, finish, machine, percentiles, simulated_model, simulated_server, table
from benchmarks.scale import clips
from benchmarks.speech import hoarse, spoken_digits
from serve_app.window import Samples
from testing.digit_strings import load_bank
from testing.paths import DIGITS
from testing.server import Server

STEP_S, SECONDS_PER_AUDIO_S, LOAD_S = 0.05, 0.01, 5.0
"""Of a simulated replica: duration of a batch, fixed and for every second of audio, and of loading."""

MAX_REPLICAS = 6
IDLE_UNLOAD_S = 20.0
TARGET_WAIT_S = 10.0

BATCH_AUDIO_S = 96.0
"""Three windows, one second of work: what a replica would choose by measurement. It is set so that the calls' target is right."""

FILE_HOURS = 3.0
CLIPS, CLIP_S, CLIPS_WITHIN_S = 500, 30.0, 20.0
STREAMS, STREAM_S = 50, 60.0

LIVE = {"step_s": 0.5}
"""A stream of digits needs about 6 s of audio decoded per second then, so that 50 of them need no more than MAX_REPLICAS."""

SAMPLE_S = 0.5
"""How often replicas are counted, seconds."""

SETTLE_S = 120.0
"""One replica must be left after this long, seconds."""

BUILDERS = {
    "audio": "serve_app.app:build_app",
    "calls": "benchmarks.scaled_by_calls:build_app",
    "calls-prompt": "benchmarks.scaled_by_calls:build_prompt_app",
}
"""By policy."""


@dataclass(slots=True)
class Round:
    """One burst."""

    waits_s: list[float]
    """Of the file from its upload to its transcript, of each clip from its arrival to its answer, of each word of the streams
    from its end to its final form."""
    replicas: list[tuple[float, int]] = field(default_factory=list)
    """Processes of replicas, those that load included, at so many seconds after the start."""

    @property
    def added_replica_s(self) -> float:
        """Replica-seconds beyond the one that is always loaded."""
        return sum((count - 1) * (until_s - at_s) for (at_s, count), (until_s, _) in pairwise(self.replicas))

    @property
    def changes(self) -> list[tuple[float, int]]:
        return self.replicas[:1] + [now for before, now in pairwise(self.replicas) if before[1] != now[1]]


@dataclass(slots=True)
class Row:
    burst: str
    policy: str
    rounds: list[Round] = field(default_factory=list)

    def wait_s(self, percent: float) -> float:
        return median(percentiles(each.waits_s, [percent])[0] for each in self.rounds)

    @property
    def added_replica_s(self) -> float:
        return median(each.added_replica_s for each in self.rounds)


class ReplicaCounter:
    """Counts the replicas of a server in a thread. A context manager."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._count)
        self._began_s = time.monotonic()
        self.counts: list[tuple[float, int]] = []

    def __enter__(self) -> "ReplicaCounter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def _count(self) -> None:
        while not self._is_done.wait(SAMPLE_S):
            self.counts.append((time.monotonic() - self._began_s, len(self._server.processes("model simulated"))))

    def wait_until_one_is_left(self) -> None:
        until = time.monotonic() + SETTLE_S
        while self.counts[-1][1] > 1:
            if time.monotonic() > until:
                raise RuntimeError(f"the replicas were never removed: {self.counts}")
            time.sleep(SAMPLE_S)


@contextmanager
def server_scaled_by(policy: str) -> Iterator[Server]:
    model: dict[str, Any] = simulated_model(STEP_S, SECONDS_PER_AUDIO_S)
    model |= {"max_replicas": MAX_REPLICAS, "idle_unload_s": IDLE_UNLOAD_S, "target_wait_s": TARGET_WAIT_S}
    model["simulation"]["load_s"] = LOAD_S
    content = yaml.safe_load(CONFIG.read_text())
    content["applications"][0]["import_path"] = BUILDERS[policy]
    limits = {"max_requests": 2 * CLIPS, "max_uploads": 2 * CLIPS, "max_uploads_per_address": 2 * CLIPS}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(content))
        batching = {"max_batch_audio_s": BATCH_AUDIO_S}
        with simulated_server(model, config, batching=batching, limits=limits, live=LIVE) as server:
            yield server


def send_file(path: Path, server: Server) -> list[float]:
    began_s = time.monotonic()
    upload(server, path, 3600 * FILE_HOURS)
    return [time.monotonic() - began_s]


def send_clips(requests: Sequence[Request], server: Server) -> list[float]:
    with LoadProcess(server.url) as process:
        return process.open_loop(requests, [CLIPS_WITHIN_S * number / CLIPS for number in range(CLIPS)]).latencies_s


def send_streams(speeches: Sequence[Samples], server: Server) -> list[float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        outcomes, _ = process.submit(run_streams, server.url, speeches).result()
    return [seconds for outcome in outcomes for seconds in outcome.final_s]


def burst_of(name: str) -> Callable[[Server], list[float]]:
    """Sends the burst, and returns the waits."""
    match name:
        case "file":
            return partial(send_file, noise_file("m4a", 60 * FILE_HOURS))
        case "clips":
            return partial(send_clips, list(islice(clips(CLIP_S), 16)))
        case _:
            bank = load_bank(DIGITS)
            return partial(send_streams, [hoarse(spoken_digits(bank, STREAM_S, seed), seed) for seed in range(STREAMS)])


def measure(policy: str, burst: Callable[[Server], list[float]]) -> Round:
    with server_scaled_by(policy) as server, ReplicaCounter(server) as counter:
        result = Round(burst(server))
        counter.wait_until_one_is_left()
        result.replicas = list(counter.counts)
        return result


def results(rows: Sequence[Row]) -> str:
    head = ["burst", "replicas by", "wait, s: p50", "p95", "longest", "replica-seconds added", "most replicas"]
    return table(
        head,
        [
            [
                row.burst,
                row.policy,
                *(f"{row.wait_s(percent):.1f}" for percent in (50, 95, 100)),
                f"{row.added_replica_s:.0f}",
                str(max(count for each in row.rounds for _, count in each.replicas)),
            ]
            for row in rows
        ],
    )


def savings(rows: Sequence[Row]) -> str:
    lines = []
    for ours in (row for row in rows if row.policy == "audio"):
        for other in (row for row in rows if row.burst == ours.burst and row.policy != "audio"):
            changes = [ours.wait_s(percent) / other.wait_s(percent) for percent in (50, 95)]
            replica_s = ours.added_replica_s / max(other.added_replica_s, 1.0)
            lines.append([ours.burst, other.policy, *(f"{100 * (change - 1):+.0f} %" for change in (*changes, replica_s))])
    return table(["burst", "audio, compared with", "wait p50", "p95", "replica-seconds added"], lines)


def over_time(rows: Sequence[Row]) -> str:
    def cell(each: Round) -> str:
        return ", ".join(f"{at_s:.0f} s: {count}" for at_s, count in each.changes)

    return table(
        ["burst", "by", "replicas over time"], [[row.burst, row.policy, cell(each)] for row in rows for each in row.rounds]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bursts", nargs="+", choices=["file", "clips", "streams"], default=["file", "clips", "streams"])
    parser.add_argument("--policies", nargs="+", choices=list(BUILDERS), default=["audio", "calls"])
    parser.add_argument("--rounds", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    rows = list[Row]()
    for name in options.bursts:
        burst = burst_of(name)
        of_burst = [Row(name, policy) for policy in options.policies]
        rows += of_burst
        for _ in range(options.rounds):
            for row in of_burst:
                row.rounds.append(measure(row.policy, burst))
                print(f"{name} by {row.policy}: {row.wait_s(50):.1f} s; {row.rounds[-1].changes}", flush=True)
    finish(
        options.json,
        machine(),
        f"at most {MAX_REPLICAS} replicas of {1 / SECONDS_PER_AUDIO_S:.0f} s of audio per second, loaded in {LOAD_S:g} s, "
        f"removed after {IDLE_UNLOAD_S:g} s; target_wait_s {TARGET_WAIT_S:g}; median of {options.rounds} rounds",
        [results(rows), savings(rows), over_time(rows)],
        rows=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
