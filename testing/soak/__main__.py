"""Keeps a server busy with good clients and with clients that misbehave, and tells whether anything grows.

    python -m testing.soak [--minutes 30] [--share 0.7] [--json PATH]

Starts its own server with configs/demo.yaml: the bundled model, and a simulated one. At first the clients that misbehave, long
files and live streams run beside a closed loop of short files, which shows what this machine can take. From then on, short
files come at `--share` of that rate. Every answer is checked. The exit status is 1 if one was neither right nor the error that
its request deserves, or if a figure grows over the second half (`testing.soak.sampling.Trend`).
"""

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.report import CONFIG, Meter, machine, simulated_model, table, write_json
from benchmarks.speech import hoarse, spoken_digits
from testing.checked_load import CheckedLoad, Client
from testing.digit_strings import load_bank
from testing.paths import DIGITS
from testing.server import Server, serve_run
from testing.soak.files import FILES as FILE_ATTEMPTS
from testing.soak.files import good_file
from testing.soak.sampling import Sample, Trend, sample, trends
from testing.soak.streams import STREAMS as STREAM_ATTEMPTS
from testing.soak.target import MAX_AUDIO_S, MAX_UPLOAD_BYTES, PAUSE_S, SIMULATED, Attempt, Target, target

ATTEMPTS = {**FILE_ATTEMPTS, **STREAM_ATTEMPTS}

ARGS: Mapping[str, Any] = {
    "models": [{"name": "digits", "source": "bundled", "min_replicas": 1}, simulated_model(0.02, 1 / 50)],
    "limits": {"max_upload_bytes": MAX_UPLOAD_BYTES, "max_audio_s": MAX_AUDIO_S, "upload_pause_s": PAUSE_S},
    # Live windows are short, so that most of the machine is left to the clients and to everything else.
    "live": {"idle_s": PAUSE_S, "step_s": 3.0, "left_s": 3.0, "right_s": 1.0},
}

LIMITS = {"own_mib": 10.0, "threads": 2.0, "descriptors": 5.0, "memfds": 2.0, "files": 2.0, "processes": 0.5}
"""What the figures may grow over the second half; see `Trend`."""

SAMPLE_EVERY_S = 2.0
PAUSE_BETWEEN_S = (1.0, 5.0)
"""Between two attempts of a client that misbehaves, seconds."""

CLOSED_LOOP = 6
"""Clients of the closed loop."""

MAX_IN_FLIGHT = 48
"""Short files in progress; with more, the next one waits."""

FILES, FILE_S, STREAMS = 2, 100.0, 4
"""Long files and live streams whose words are known; their lengths, seconds."""

TRACEBACK_CHARS = 2000
"""Of each traceback in the server's log, so many are shown."""

SETTLED_S = 20.0
"""By then a server that has nothing to do holds nothing of its requests, seconds."""


@dataclass(slots=True)
class Counts:
    """Attempts by what they were, and those that ended in something unexpected."""

    done: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)

    async def attempt(self, name: str, attempt: Attempt, target: Target, rng: random.Random) -> None:
        try:
            got = await attempt(target, rng)
        except Exception as error:
            got = repr(error)
        self.done[name] += 1
        if got:
            self.unexpected[f"{name}: {got}"] += 1


async def misbehave(counts: Counts, name: str, target: Target) -> None:
    """One client, without end."""
    rng = random.Random(name)
    while True:
        await counts.attempt(name, ATTEMPTS[name], target, rng)
        await asyncio.sleep(rng.uniform(*PAUSE_BETWEEN_S))


def words_of_a_round(url: str, seconds: float, is_over: threading.Event) -> list[Client]:
    """Long files, and live streams that speak for so long. Raises AssertionError if one never ends."""
    with CheckedLoad([url], SIMULATED, FILES, FILE_S, STREAMS, retries=False) as load:
        is_over.wait(seconds)
    return load.clients


async def check_words(counts: Counts, url: str, round_s: float, is_over: threading.Event) -> None:
    """One round after the other, until it is over."""
    while not is_over.is_set():
        try:
            clients = await asyncio.to_thread(words_of_a_round, url, round_s, is_over)
        except AssertionError as error:
            counts.unexpected[f"long files and live streams: {error}"] += 1
            continue
        for client in clients:
            name = "a long file" if client.kind == "file" else "a live stream"
            counts.done[name] += 1
            for what in client.saw:
                counts.unexpected[f"{name}: {what}"] += 1
            if client.lost or client.doubled:
                counts.unexpected[f"{name}: {client.lost} words lost, {client.doubled} doubled"] += 1


async def closed_loop(counts: Counts, target: Target, seconds: float) -> float:
    """Short files per second that the server can take."""
    began_s, before = time.monotonic(), counts.done["a short file"]

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < began_s + seconds:
            await counts.attempt("a short file", good_file, target, rng)

    await asyncio.gather(*map(client, range(CLOSED_LOOP)))
    return (counts.done["a short file"] - before) / (time.monotonic() - began_s)


async def open_loop(counts: Counts, target: Target, per_s: float, seconds: float) -> None:
    """Short files at random times."""
    rng, places = random.Random(1), asyncio.Semaphore(MAX_IN_FLIGHT)
    at_s = time.monotonic()
    until_s = at_s + seconds

    async def send() -> None:
        async with places:
            await counts.attempt("a short file", good_file, target, rng)

    async with asyncio.TaskGroup() as group:
        while (at_s := at_s + rng.expovariate(per_s)) < until_s:
            await asyncio.sleep(at_s - time.monotonic())
            if places.locked():
                # The machine has become slower: what cannot be sent is left out.
                async with places:
                    at_s = time.monotonic()
            group.create_task(send())


async def watch(server: Server, samples: list[Sample], every_s: float) -> None:
    while True:
        samples.append(await asyncio.to_thread(sample, server))
        await asyncio.sleep(every_s)


async def soak(server: Server, minutes: float, share: float) -> tuple[Counts, list[Sample], list[str]]:
    """The attempts, the samples, and what the server held too long after the end."""
    counts, samples = Counts(), list[Sample]()
    seconds, is_over = 60 * minutes, threading.Event()
    speech = hoarse(spoken_digits(load_bank(DIGITS), 120.0, 5), 5)
    async with httpx2.AsyncClient(base_url=server.url, timeout=120, limits=httpx2.Limits(max_connections=None)) as http:
        at = target(server.url, http, speech)
        await counts.attempt("a short file", good_file, at, random.Random(0))
        idle = sample(server)
        others = [asyncio.create_task(misbehave(counts, name, at)) for name in ATTEMPTS]
        checking = asyncio.create_task(check_words(counts, server.url, max(15.0, seconds / 15), is_over))
        per_s = await closed_loop(counts, at, min(30.0, seconds / 4))
        print(f"{per_s:.1f} short files per second in a closed loop; {share:.0%} of that for {minutes:g} min", flush=True)
        meter = Meter(server)
        watching = asyncio.create_task(watch(server, samples, min(SAMPLE_EVERY_S, seconds / 60)))
        await open_loop(counts, at, share * per_s, seconds)
        usage = meter.stop()
        used = ", ".join(f"{kind} {cpu_s / usage.wall_s:.2f}" for kind, cpu_s in usage.cpu_s.items())
        print(f"cores in use: {used}, programs elsewhere {usage.elsewhere_cores:.2f}", flush=True)
        is_over.set()
        for task in (*others, watching):
            task.cancel()
        await asyncio.gather(*others, watching, return_exceptions=True)
        if not watching.cancelled():
            watching.result()
        await checking
    return counts, samples, await asyncio.to_thread(left_over, server, idle)


def left_over(server: Server, idle: Sample) -> list[str]:
    """What is still held of requests when there are none, after a while."""
    until_s = time.monotonic() + SETTLED_S
    while True:
        now, found = sample(server), list[str]()
        for figure in ("memfds", "files"):
            for name, held in now.held.items():
                more = getattr(held, figure) - (getattr(idle.held[name], figure) if name in idle.held else 0)
                if more > 0:
                    found.append(f"{name}: {more:g} {figure} more than before")
        if now.named_files > idle.named_files:
            found.append(f"{now.named_files - idle.named_files} temporary files more than before")
        if not found or time.monotonic() > until_s:
            return found
        time.sleep(1.0)


def report(counts: Counts, found: Sequence[Trend]) -> str:
    attempts = table(("clients", "number"), [[name, f"{number:,}"] for name, number in sorted(counts.done.items())])
    figures = list(LIMITS)
    lines = []
    for name in dict.fromkeys(trend.name for trend in found):
        own = {trend.figure: trend for trend in found if trend.name == name}
        lines.append([name, *(f"{own[figure].mean:.1f} ({own[figure].growth:+.1f})" for figure in figures)])
    held = table(("processes", *(f"{figure} (growth, at most {LIMITS[figure]:g})" for figure in figures)), lines)
    return f"{attempts}\n\n{held}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.7, help="of what the machine can take")
    parser.add_argument("--tolerance", type=float, default=1.0, help="factor of what figures may grow, for short runs")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve_run(CONFIG, Path(folder), args=ARGS) as server:
        for model in ("digits", SIMULATED):
            server.wait_for_state(model, "ready")
        counts, samples, left = asyncio.run(soak(server, options.minutes, options.share))
        tracebacks = server.log.split("Traceback (most recent call last)")[1:]
    found = trends(samples, {figure: limit * options.tolerance for figure, limit in LIMITS.items()})
    print(f"\n{report(counts, found)}\n")
    problems = [f"{number} x {what}" for what, number in counts.unexpected.items()]
    problems += [f"{trend.name}: {trend.figure} grew by {trend.growth:.1f}" for trend in found if trend.grows]
    problems += [f"left over: {what}" for what in left]
    problems += [f"a traceback in the log: {part[:TRACEBACK_CHARS]}" for part in tracebacks]
    print("\n".join(problems) or "Every answer was as expected, and nothing grows.")
    write_json(
        options.json,
        machine(),
        done=counts.done,
        unexpected=counts.unexpected,
        trends=[asdict(trend) for trend in found],
        left=left,
        samples=[asdict(one) for one in samples],
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
