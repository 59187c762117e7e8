"""Latency of short requests while long files are transcribed, compared with an idle server.

    python -m benchmarks.latency [--requests 60] [--rounds 3] [--minutes 20] [--check] [--json PATH]

Starts its own server with configs/demo.yaml. Each round sends its share of the requests (3 s of speech each, one at a time) first
to the idle server, then while two clients send a long file repeatedly. The bound on the 95th percentile under load is twice the
idle one plus one engine step; with --check the exit status says whether it holds.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import add_json_option, machine, write_json
from serve_app.engine.batch_policy import expected_batch_audio_s
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.model_source import bundled_model_path
from serve_app.settings import Settings
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.digit_strings import Bank, DigitString, compose, load_bank, to_int16
from testing.paths import DIGITS, ROOT
from testing.server import Server, serve_run

SHORT_S = 3.0
"""Length of a short request, seconds."""

SHORT_DIGITS = 4
"""Digits spoken in a short request."""

LONG_FILES = 2
"""Clients that send a long file each, repeatedly."""

WARM_UP_REQUESTS = 10
"""Requests before the first measurement."""

STEP_RUNS = 15
"""Engine steps measured."""

MAX_PAUSE_S = 0.5
"""Longest random pause before a request, seconds, so that requests start at random moments of an engine step."""


@dataclass(slots=True)
class Latencies:
    """Seconds from sending a request to receiving its answer, on the idle server and under load."""

    idle_s: list[float] = field(default_factory=list)
    loaded_s: list[float] = field(default_factory=list)


def short_speech(bank: Bank, rng: random.Random) -> DigitString:
    """SHORT_DIGITS digits, followed by silence up to exactly SHORT_S seconds."""
    samples = round(SHORT_S * SAMPLE_RATE)
    while True:
        string = compose(bank[sorted(bank)[0]], [rng.randrange(10) for _ in range(SHORT_DIGITS)], rng)
        if string.words[-1].end_sample < samples:
            return DigitString(np.resize(np.append(string.samples, np.zeros(samples, np.float32)), samples), string.words)


def long_speech(bank: Bank, minutes: float, rng: random.Random) -> DigitString:
    """Digits for so many minutes, in one voice after the other."""
    voices, samples = sorted(bank), 0
    parts: list[NDArray[np.float32]] = []
    while samples < minutes * 60 * SAMPLE_RATE:
        voice = bank[voices[len(parts) % len(voices)]]
        parts.append(compose(voice, [rng.randrange(10) for _ in range(12)], rng).samples)
        samples += len(parts[-1])
    return DigitString(np.concatenate(parts), ())


def engine_step_s(speech: DigitString, settings: Settings) -> tuple[int, float]:
    """Number of windows in a full batch of bulk work, and the median time of its engine step on the idle machine, seconds."""
    engine = ParakeetEngine.load(bundled_model_path(), device="cpu")
    window_s = settings.windows.window_s
    count = max(1, int(expected_batch_audio_s(settings.batching, on_gpu=False) / window_s))
    samples = to_int16(speech.samples[: round(window_s * SAMPLE_RATE)])
    seconds = []
    for _ in range(STEP_RUNS):
        started = time.perf_counter()
        engine.transcribe([samples] * count)
        seconds.append(time.perf_counter() - started)
    return count, float(np.median(seconds))


def send_repeatedly(url: str, path: Path) -> None:
    """Body of a load process, which is killed from outside."""
    with httpx2.Client(base_url=url, timeout=None) as client:
        while True:
            with path.open("rb") as file:
                client.post("/v1/audio/transcriptions", files={"file": file}).raise_for_status()


@contextmanager
def long_files(server: Server, path: Path) -> Iterator[None]:
    """Keep LONG_FILES long files in progress while the block runs."""
    processes = [
        multiprocessing.get_context("spawn").Process(target=send_repeatedly, args=(server.url, path)) for _ in range(LONG_FILES)
    ]
    windows_before = windows_decoded(server)
    for process in processes:
        process.start()
    try:
        while windows_decoded(server) < windows_before + 4 * LONG_FILES or queued(server) < LONG_FILES:
            time.sleep(0.2)
        yield
        for process in processes:
            if not process.is_alive():
                raise RuntimeError("a client with a long file ended early")
    finally:
        for process in processes:
            process.kill()
            process.join()
        while queued(server) > 0:
            time.sleep(0.2)


def windows_decoded(server: Server) -> int:
    return sum(replica["windows"] for replica in server.model("digits")["replicas"])


def queued(server: Server) -> int:
    return sum(replica["queued"] for replica in server.model("digits")["replicas"])


def measure(server: Server, speech: DigitString, requests: int, rng: random.Random) -> list[float]:
    """Send `requests` requests one after the other; return the seconds that each took."""
    data, seconds = media.wav(to_int16(speech.samples)), []
    for _ in range(requests):
        time.sleep(rng.uniform(0, MAX_PAUSE_S))
        started = time.perf_counter()
        response = server.transcribe(data)
        seconds.append(time.perf_counter() - started)
        if response.json().get("text") != speech.text:
            raise RuntimeError(f"a wrong answer: {response.status_code} {response.text}")
    return seconds


def line(name: str, seconds: Sequence[float]) -> str:
    """One row of the table, in milliseconds."""
    p50, p95, maximum = (1000 * float(q) for q in np.percentile(seconds, [50, 95, 100]))
    return f"{name:<28} {len(seconds):>8} {p50:>9.0f} {p95:>9.0f} {maximum:>9.0f}"


def report(rounds: Sequence[Latencies], windows: int, step_s: float) -> bool:
    """Print the totals and the bound; return whether the bound holds."""
    idle_s = [s for latencies in rounds for s in latencies.idle_s]
    loaded_s = [s for latencies in rounds for s in latencies.loaded_s]
    print(line("all, idle", idle_s))
    print(line(f"all, {LONG_FILES} long files", loaded_s))
    bound_s, p95_s = 2 * float(np.percentile(idle_s, 95)) + step_s, float(np.percentile(loaded_s, 95))
    holds = p95_s <= bound_s
    print(f"engine step, {windows} window(s): {1000 * step_s:.0f} ms")
    print(f"bound, 2 x idle p95 + step: {1000 * bound_s:.0f} ms; p95 under load is {p95_s / bound_s:.2f} of it: ", end="")
    print("holds" if holds else "exceeded")
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60, help="on the idle server, and again under load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0, help="length of each long file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the bound does not hold")
    add_json_option(parser)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    bank = load_bank(DIGITS)
    short, long = short_speech(bank, rng), long_speech(bank, arguments.minutes, rng)
    windows, step_s = engine_step_s(long, Settings())
    rounds = [Latencies() for _ in range(arguments.rounds)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "long.wav"
        path.write_bytes(media.wav(to_int16(long.samples)))
        server = stack.enter_context(serve_run(ROOT / "configs" / "demo.yaml", folder))
        server.wait_for_state("digits", "ready")
        measure(server, short, WARM_UP_REQUESTS, rng)
        print(f"{'latency, ms':<28} {'requests':>8} {'p50':>9} {'p95':>9} {'max':>9}")
        for number, latencies in enumerate(rounds):
            share = arguments.requests // arguments.rounds + (number < arguments.requests % arguments.rounds)
            latencies.idle_s = measure(server, short, share, rng)
            print(line(f"round {number + 1}, idle", latencies.idle_s), flush=True)
            with long_files(server, path):
                latencies.loaded_s = measure(server, short, share, rng)
            print(line(f"round {number + 1}, {LONG_FILES} long files", latencies.loaded_s), flush=True)
    holds = report(rounds, windows, step_s)
    write_json(
        arguments.json,
        machine(),
        long_files=LONG_FILES,
        minutes=arguments.minutes,
        rounds=[asdict(latencies) for latencies in rounds],
        step_windows=windows,
        step_s=step_s,
        holds=holds,
    )
    sys.exit(int(arguments.check and not holds))


if __name__ == "__main__":
    main()
