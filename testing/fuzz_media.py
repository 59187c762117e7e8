"""Send damaged media files to a running server and say what came of it.

    python -m testing.fuzz_media [--files 2000] [--seed 1] [--clients 4] [--url URL] [--server-pid PID] [--keep FOLDER]

Good files of every container, a few seconds of speech each, are made on the spot and damaged: bits flipped, runs overwritten,
lengths forged, parts cut, swapped, repeated, or put behind the header of another format. The same seed gives the same files. A
server passes when it answers each of them in time with anything but a failure of its own (5xx), transcribes the good files that
come in between, and holds no more memory or open files afterwards. The last needs the process id of `serve run`.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import soundfile as sf

from testing import media
from testing.paths import DATA
from testing.server import held_bytes, open_files

SPEECH = DATA / "two-four-seven.flac"
SPOKEN = "Two four seven."
LARGEST_SEED_BYTES = 120_000
GOOD_EVERY = 25
"""After so many damaged files a good one is sent."""

HANG_S = 60.0
"""No file of a few seconds may take longer, however many others are being served."""

MAGICS = (
    b"RIFF\xff\xff\xff\xffWAVE",
    b"RF64\xff\xff\xff\xffWAVEds64",
    b"fLaC\x00\x00\x00\x22",
    b"OggS\x00\x02",
    b"\x1aE\xdf\xa3",
    b"\x00\x00\x00\x20ftypisom",
    b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
    b"\xff\xfb\x90\x64",
    b"\xff\xf1\x50\x80",
    b"#!AMR\n",
    b"FORM\x00\x10\x00\x00AIFFCOMM",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
    b"FLV\x01\x05",
    b"G@\x00\x10",
    b"\x00\x00\x01\xba",
    b"caff\x00\x01",
    b"\x0b\x77",
    b"TTA1",
    b"wvpk",
    b".snd",
)

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**64 - 1)

Mutation = Callable[[random.Random, bytearray, bytes], bytearray]
"""Damages a file; the last argument is another good file to take from."""


def seed_files() -> dict[str, bytes]:
    """Good files by name, each holding the same speech."""
    speech, rate = sf.read(SPEECH, dtype="float32")
    assert rate == 16_000
    files = {f"wav, {subtype}": media.wav(speech, subtype=subtype) for subtype in ("PCM_U8", "PCM_16", "ALAW", "FLOAT")}
    files |= {name: media.make(name, speech) for name in media.FORMATS}
    return {name: data for name, data in files.items() if len(data) <= LARGEST_SEED_BYTES}


def damaged_files(seeds: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged files and what each was made from; the same for the same seed."""
    names = sorted(seeds)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name = names[number % len(names)]
        other = seeds[rng.choice(names)]
        data = bytearray(seeds[name])
        steps = [rng.choice(MUTATIONS) for _ in range(rng.choice((1, 1, 2, 3, 5)))]
        for step in steps:
            data = step(rng, data, other)
        label = f"{seed}/{number}: {name}: {', '.join(step.__name__.strip('_') for step in steps)}"
        yield label, bytes(data[: 2 * LARGEST_SEED_BYTES])


def _place(rng: random.Random, data: bytearray) -> int:
    """Anywhere, but as often as not in the first bytes, where the headers are, or the last."""
    if not data:
        return 0
    return rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 512)), max(0, len(data) - 1 - rng.randrange(512))))


def _flip_bits(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    for _flip in range(rng.choice((1, 4, 32, 256))):
        if data:
            data[_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _overwrite_run(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    first = _place(rng, data)
    length = min(rng.choice((2, 16, 300, 5000)), len(data) - first)
    data[first : first + length] = rng.randbytes(length)
    return data


def _clear_run(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    first = _place(rng, data)
    length = min(rng.choice((4, 64, 1000, 20_000)), len(data) - first)
    data[first : first + length] = bytes([rng.choice((0, 0xFF))]) * length
    return data


def _truncate(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    return data[: _place(rng, data)]


def _lose_the_start(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    return data[_place(rng, data) :]


def _insert(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    first = _place(rng, data)
    data[first:first] = rng.randbytes(rng.choice((1, 3, 100, 5000)))
    return data


def _remove(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    first = _place(rng, data)
    del data[first : first + rng.choice((1, 3, 100, 5000))]
    return data


def _repeat(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    first = _place(rng, data)
    part = data[first : first + rng.choice((1, 16, 2000))]
    data[first:first] = part * rng.choice((1, 5, 20))
    return data


def _swap(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    cuts = sorted(_place(rng, data) for _ in range(3))
    return data[: cuts[0]] + data[cuts[1] : cuts[2]] + data[cuts[0] : cuts[1]] + data[cuts[2] :]


def _forge_number(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    """Lengths, counts, rates and times are numbers of 2, 4 or 8 bytes; extreme ones hurt most."""
    for _number in range(rng.choice((1, 1, 4))):
        size = rng.choice((2, 4, 8))
        first = _place(rng, data)
        value = rng.choice((*EXTREMES, rng.randrange(2**64)))
        if first + size <= len(data):
            data[first : first + size] = (value % 256**size).to_bytes(size, rng.choice(("little", "big")))
    return data


def _splice(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """The start of one file and the rest of another."""
    return data[: _place(rng, data)] + other[rng.randrange(len(other)) :]


def _graft_header(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    length = rng.choice((4, 12, 44, 200, 1000))
    data[:length] = other[:length]
    return data


def _garbage(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    return bytearray(rng.choice(MAGICS) + rng.randbytes(rng.choice((8, 200, 20_000))))


MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bits, _overwrite_run, _clear_run, _truncate, _lose_the_start, _insert, _remove, _repeat, _swap),
    *(_forge_number, _forge_number, _splice, _graft_header, _garbage),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What a server holds: memory by kind of process, and files open that are deleted or temporary."""

    held_mb: dict[str, float]
    temporary_files: int

    @classmethod
    def of(cls, server_pid: int) -> "Load":
        """The processes of a `serve run` on this machine."""
        held_mb: dict[str, float] = {}
        files = 0
        for process in psutil.Process(server_pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, IndexError, FileNotFoundError):
                # Ray appends the method that runs.
                kind = process.cmdline()[0].removeprefix("ray::").partition(".handle_request")[0]
                if kind.startswith(("ProxyActor", "ingress", "ServeReplica", "model", "status")):
                    held_mb[f"{kind} {process.pid}"] = held_bytes(process) / 1e6
                    # Shared memory of Ray's object store is mapped from deleted files too.
                    files += sum(f.endswith("(deleted)") and not f.startswith("/memfd") for f in open_files(process))
        return cls(held_mb, files)

    def growth_mb(self, before: "Load") -> dict[str, float]:
        """By process; one that was not there before has grown from nothing."""
        return {kind: mb - before.held_mb.get(kind, 0.0) for kind, mb in self.held_mb.items()}


@dataclass(slots=True)
class Report:
    """What came of a run. A status of 0 is an answer that did not come within HANG_S."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[str, int]] = field(default_factory=list)
    wrong_texts: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


async def send(url: str, files: Iterable[tuple[str, bytes]], *, clients: int = 4, keep: Path | None = None) -> Report:
    """Send files with several clients at once; those that the server fails on are written to `keep`."""
    report, good, waiting = Report(), SPEECH.read_bytes(), iter(files)

    async def ask(client: httpx2.AsyncClient, data: bytes) -> tuple[int, str]:
        started = time.monotonic()
        try:
            response = await client.post("/v1/audio/transcriptions", files={"file": ("speech", data)})
        except httpx2.TimeoutException:
            return 0, ""
        finally:
            report.slowest_s = max(report.slowest_s, time.monotonic() - started)
        return response.status_code, response.json().get("text", "")

    async def be_client(client: httpx2.AsyncClient) -> None:
        for number, (label, data) in enumerate(waiting, 1):
            status, _ = await ask(client, data)
            report.statuses[status] += 1
            if status == 0 or status >= 500:
                report.failures.append((label, status))
                if keep is not None:
                    (keep / f"{label.split(':')[0].replace('/', '-')}.bin").write_bytes(data)
            if number % GOOD_EVERY == 0:
                status, text = await ask(client, good)
                if text != SPOKEN:
                    report.wrong_texts.append(f"after {label}: {status} {text}")

    async with httpx2.AsyncClient(base_url=url, timeout=HANG_S) as client:
        await asyncio.gather(*(be_client(client) for _ in range(clients)))
        status, text = await ask(client, good)
        if text != SPOKEN:
            report.wrong_texts.append(f"at the end: {status} {text}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--server-pid", type=int)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    seeds = seed_files()
    # Good files first: what a server needs to decode anything at all is no growth.
    asyncio.run(send(arguments.url, seeds.items(), clients=arguments.clients))
    before = Load.of(arguments.server_pid) if arguments.server_pid else None
    files = damaged_files(seeds, arguments.files, arguments.seed)
    report = asyncio.run(send(arguments.url, files, clients=arguments.clients, keep=arguments.keep))
    print(f"answers by status: {dict(sorted(report.statuses.items()))}, the slowest after {report.slowest_s:.1f} s")
    for label, status in report.failures:
        print(f"FAILED {status} {label}")
    for text in report.wrong_texts:
        print(f"WRONG {text}")
    if before is not None:
        after = Load.of(arguments.server_pid)
        for kind, mb in after.growth_mb(before).items():
            print(f"{kind}: {after.held_mb[kind]:.0f} MB, {mb:+.0f} MB")
        print(f"temporary files: {before.temporary_files} before, {after.temporary_files} after")
    sys.exit(bool(report.failures or report.wrong_texts))


if __name__ == "__main__":
    main()
