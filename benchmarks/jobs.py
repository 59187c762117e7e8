"""A thousand short jobs at once: how soon they are done, how fair their turns are, and what short requests feel of it.

    python -m benchmarks.jobs [--jobs 1000] [--requests 60] [--json PATH]

It starts its own server with the bundled model and two keys. First, short requests (3 s of speech each, one at a time) are sent
to the idle server, and beside a long file; then two clients, a key each, send half of the jobs (5 s of speech each), and the
same short requests are sent until all jobs have ended. Every transcript is compared with that of the same file sent directly.
"""

import argparse
import asyncio
import random
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.latency import WARM_UP_REQUESTS, long_speech, measure, short_speech, windows_decoded
from benchmarks.report import CONFIG, PLAIN_NICENESS, add_json_option, finish, machine, percentiles, table
from testing import media
from testing.digit_strings import load_bank, to_int16
from testing.paths import DIGITS
from testing.server import Server, serve_run

JOB_S = 5.0
FILES = 8
"""Different files of the jobs."""

UPLOADS = 4
"""Uploads of a client at once."""

KEYS = ("anna", "berta")
MINUTES = 20.0
"""Length of the long file."""


async def submit(url: str, key: str, files: list[bytes], count: int) -> list[tuple[str, int]]:
    """Make so many jobs with a key; returns their ids, and which file each has."""
    made: list[tuple[str, int]] = []
    numbers = iter(range(count))
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:

        async def send() -> None:
            for number in numbers:
                which = number % len(files)
                answer = await client.post("/v1/jobs", files={"file": ("a.wav", files[which])})
                answer.raise_for_status()
                made.append((answer.json()["id"], which))

        await asyncio.gather(*(send() for _ in range(UPLOADS)))
    return made


def all_jobs(server: Server, key: str) -> list[dict[str, Any]]:
    """Every job of a key, as the list has it."""
    found: list[dict[str, Any]] = []
    before: int | None = None
    while True:
        parameters = {"limit": 100} | ({} if before is None else {"before": before})
        headers = {"Authorization": f"Bearer {key}"}
        page = server.client.get("/v1/jobs", params=parameters, headers=headers).raise_for_status().json()
        found += page["data"]
        before = page["next"]
        if before is None:
            return found


def has_ended(server: Server) -> bool:
    """Whether all jobs have."""

    def has(key: str, state: str) -> bool:
        headers = {"Authorization": f"Bearer {key}"}
        return bool(server.client.get("/v1/jobs", params={"state": state, "limit": 1}, headers=headers).json()["data"])

    return not any(has(key, state) for key in KEYS for state in ("queued", "running"))


def share_of_first(jobs: dict[str, list[dict[str, Any]]]) -> float:
    """Share of the first key in the jobs that ended while both keys had some in the queue."""
    began_s = max(min(job["created_at"] for job in each) for each in jobs.values())
    over_s = min(max(job["started_at"] for job in each) for each in jobs.values())
    counts = [sum(began_s <= job["started_at"] <= over_s for job in jobs[key]) for key in KEYS]
    return float(counts[0] / max(1, sum(counts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=60, help="on the idle server, and again beside the long file")
    add_json_option(parser)
    arguments = parser.parse_args()
    rng, bank = random.Random(1), load_bank(DIGITS)
    short = short_speech(bank, rng)
    samples = to_int16(long_speech(bank, MINUTES, rng).samples)
    size = round(JOB_S * 16_000)
    files = [media.wav(samples[n * size : (n + 1) * size]) for n in range(FILES)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        long_path = folder / "long.wav"
        long_path.write_bytes(media.wav(samples))
        env = {**PLAIN_NICENESS, "API_KEY": ""}
        args = {"auth": {"keys": [f"{key}: {key}" for key in KEYS]}}
        server = stack.enter_context(serve_run(CONFIG, folder, args=args, env=env))
        server.client.headers["Authorization"] = f"Bearer {KEYS[0]}"
        server.wait_for_state("digits", "ready")
        expected = [server.transcribe(data, response_format="text").text for data in files]
        measure(server, short, WARM_UP_REQUESTS, rng)
        latencies = {"idle": measure(server, short, arguments.requests, rng)}
        ends = threading.Event()
        sender = threading.Thread(target=_send_long, args=(server.url, long_path, ends))
        before = windows_decoded(server)
        sender.start()
        while windows_decoded(server) < before + 4:
            time.sleep(0.1)
        latencies["beside a long file"] = measure(server, short, arguments.requests, rng)
        ends.set()
        sender.join()

        began_s = time.monotonic()
        made: dict[str, list[tuple[str, int]]] = {}

        def send_half(key: str) -> None:
            made[key] = asyncio.run(submit(server.url, key, files, arguments.jobs // 2))

        clients = [threading.Thread(target=send_half, args=(key,)) for key in KEYS]
        for client in clients:
            client.start()
        seconds: list[float] = []
        while any(client.is_alive() for client in clients) or not has_ended(server):
            seconds += measure(server, short, 1, rng)
        latencies[f"beside {arguments.jobs} jobs"] = seconds
        took_s = time.monotonic() - began_s
        jobs = {key: all_jobs(server, key) for key in KEYS}
        wrong = 0
        for key in KEYS:
            for job_id, which in made[key]:
                url, headers = f"/v1/jobs/{job_id}/result", {"Authorization": f"Bearer {key}"}
                wrong += server.client.get(url, params={"response_format": "text"}, headers=headers).text != expected[which]
    audio_s = arguments.jobs * JOB_S
    waits = [job["started_at"] - job["created_at"] for each in jobs.values() for job in each]
    beside_jobs = f"beside {arguments.jobs} jobs"
    rows = [[name, str(len(each)), *(f"{1000 * s:.0f}" for s in percentiles(each, (50, 95)))] for name, each in latencies.items()]
    slower = percentiles(latencies[beside_jobs], (95,))[0] / percentiles(latencies["beside a long file"], (95,))[0]
    p50_s, p95_s = percentiles(waits, (50, 95))
    figures = {
        "jobs": str(sum(map(len, jobs.values()))),
        "wrong or lost": str(wrong),
        "seconds": f"{took_s:.1f}",
        "x real time": f"{audio_s / took_s:.0f}",
        "wait p50, s": f"{p50_s:.1f}",
        "wait p95, s": f"{p95_s:.1f}",
        f"share of {KEYS[0]}": f"{share_of_first(jobs):.2f}",
        "p95 beside jobs : beside a file": f"{slower:.2f}",
    }
    finish(
        arguments.json,
        machine(),
        f"{arguments.jobs} jobs of {JOB_S:.0f} s, two keys; short requests of 3 s, ms",
        [table(["short requests", "number", "p50", "p95"], rows), table(list(figures), [list(figures.values())])],
        latencies=latencies,
        figures=figures,
    )


def _send_long(url: str, path: Path, ends: threading.Event) -> None:
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    with httpx2.Client(base_url=url, timeout=None, headers=headers) as client:
        while not ends.is_set():
            client.post("/v1/audio/transcriptions", files={"file": path.read_bytes()}).raise_for_status()


if __name__ == "__main__":
    main()
