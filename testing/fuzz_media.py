"""Send damaged media files to a running server and print how it answers.

    python -m testing.fuzz_media [--files 2000] [--seed 1] [--clients 4] [--url URL] [--server-pid PID] [--keep FOLDER]

A few seconds of speech are encoded in every format, and the files are damaged at random. The same seed gives the same files.
A server passes if it answers every damaged file within HANG_S and without a server error (5xx), and transcribes the intact files
sent in between correctly. With --server-pid, the process id of `serve run`, memory growth and temporary files are printed too.
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
from testing.server import DECODER, held_bytes, open_files

SPEECH = DATA / "two-four-seven.flac"
"""Recording that all files contain, 16 kHz."""

SPOKEN = "Two four seven."
"""Correct transcript of SPEECH."""

MAX_SEED_BYTES = 120_000
"""Maximum size of an intact file, bytes. Larger ones are not used; damaged files are truncated to twice this size."""

GOOD_EVERY = 25
"""Number of damaged files after which each client sends an intact one."""

HANG_S = 60.0
"""Timeout of a request, seconds. A file of a few seconds must be answered in this time even under load."""

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
"""First bytes of media formats (magic numbers); random bytes follow them in a garbage file."""

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**64 - 1)
"""Values of forged numbers, at the limits of the usual integer types."""

Mutation = Callable[[random.Random, bytearray, bytes], bytearray]
"""Returns a damaged copy of a file and may change its argument. The last argument is another intact file, the source of parts."""


def seed_files() -> dict[str, bytes]:
    """Intact files of the same speech, by the name of their format."""
    speech, rate = sf.read(SPEECH, dtype="float32")
    assert rate == 16_000
    files = {f"wav, {subtype}": media.wav(speech, subtype=subtype) for subtype in ("PCM_U8", "PCM_16", "ALAW", "FLOAT")}
    files |= {name: media.make(name, speech) for name in media.FORMATS}
    return {name: data for name, data in files.items() if len(data) <= MAX_SEED_BYTES}


def damaged_files(seeds: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damaged files, each after a label that names its seed, format and mutations. Deterministic for a seed."""
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
        yield label, bytes(data[: 2 * MAX_SEED_BYTES])


def _place(rng: random.Random, data: bytearray) -> int:
    """A random index. Two times in three it is in the first or the last 512 bytes, because headers and indexes are there."""
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


def _remove_start(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
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
    """Lengths, counts, rates and times are numbers of 2, 4 or 8 bytes, and extreme values cause most failures."""
    for _number in range(rng.choice((1, 1, 4))):
        size = rng.choice((2, 4, 8))
        first = _place(rng, data)
        value = rng.choice((*EXTREMES, rng.randrange(2**64)))
        if first + size <= len(data):
            data[first : first + size] = (value % 256**size).to_bytes(size, rng.choice(("little", "big")))
    return data


def _splice(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data[: _place(rng, data)] + other[rng.randrange(len(other)) :]


def _graft_header(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    length = rng.choice((4, 12, 44, 200, 1000))
    data[:length] = other[:length]
    return data


def _garbage(rng: random.Random, data: bytearray, _: bytes) -> bytearray:
    return bytearray(rng.choice(MAGICS) + rng.randbytes(rng.choice((8, 200, 20_000))))


MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bits, _overwrite_run, _clear_run, _truncate, _remove_start, _insert, _remove, _repeat, _swap),
    *(_forge_number, _forge_number, _splice, _graft_header, _garbage),
)
"""Mutations to choose from; a forged number is twice as likely as any other."""


@dataclass(frozen=True, slots=True)
class Load:
    """Memory and temporary files that the processes of a server hold."""

    held_mb: dict[str, float]
    """Memory by process, MB. A key is the kind of the process and its process id."""
    temporary_files: tuple[str, ...]
    """Open files that have been deleted, each after its process."""

    @classmethod
    def of(cls, server_pid: int) -> "Load":
        """Measure the child processes of a `serve run` on this machine."""
        held_mb: dict[str, float] = {}
        files: list[str] = []
        for process in psutil.Process(server_pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, IndexError, FileNotFoundError):
                arguments = process.cmdline()
                # Ray appends the name of the current method to the title of a process, behind a dot.
                kind = "decoder" if DECODER in arguments else arguments[0].removeprefix("ray::").partition(".")[0]
                if kind.startswith(("ProxyActor", "ingress", "ServeReplica", "model", "status", "decoder")):
                    name = f"{kind} {process.pid}"
                    held_mb[name] = held_bytes(process) / 1e6
                    # Ray's object store maps shared memory from deleted files, which are not temporary files.
                    deleted = [file for file in open_files(process) if file.endswith("(deleted)")]
                    files += [f"{name}: {file}" for file in deleted if not file.startswith("/memfd")]
        return cls(held_mb, tuple(files))

    @property
    def processes(self) -> Counter[str]:
        """Number of processes of each kind."""
        return Counter(process.rpartition(" ")[0] for process in self.held_mb)

    def growth_mb(self, earlier: "Load") -> dict[str, float]:
        """Growth of the memory of each process since `earlier`, MB. A new process counts in full."""
        return {process: mb - earlier.held_mb.get(process, 0.0) for process, mb in self.held_mb.items()}


@dataclass(slots=True)
class Report:
    """Results of a run."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Number of damaged files by HTTP status; 0 means no answer within HANG_S."""
    failures: list[tuple[str, int]] = field(default_factory=list)
    """Label and status of each damaged file without an answer or with a server error."""
    wrong_texts: list[str] = field(default_factory=list)
    """A message for each wrong answer to an intact file."""
    slowest_s: float = 0.0
    """Longest response time, seconds."""


async def send(url: str, files: Iterable[tuple[str, bytes]], *, clients: int = 4, keep: Path | None = None) -> Report:
    """Send files with concurrent clients. Files that fail, as in `Report.failures`, are written to the folder `keep`."""
    report, good, waiting = Report(), SPEECH.read_bytes(), iter(files)

    async def post(client: httpx2.AsyncClient, data: bytes) -> tuple[int, str]:
        started = time.monotonic()
        try:
            response = await client.post("/v1/audio/transcriptions", files={"file": ("speech", data)})
        except httpx2.TimeoutException:
            return 0, ""
        finally:
            report.slowest_s = max(report.slowest_s, time.monotonic() - started)
        return response.status_code, response.json().get("text", "")

    async def run_client(client: httpx2.AsyncClient) -> None:
        for number, (label, data) in enumerate(waiting, 1):
            status, _ = await post(client, data)
            report.statuses[status] += 1
            if status == 0 or status >= 500:
                report.failures.append((label, status))
                if keep is not None:
                    (keep / f"{label.split(':')[0].replace('/', '-')}.bin").write_bytes(data)
            if number % GOOD_EVERY == 0:
                status, text = await post(client, good)
                if text != SPOKEN:
                    report.wrong_texts.append(f"after {label}: {status} {text}")

    async with httpx2.AsyncClient(base_url=url, timeout=HANG_S) as client:
        await asyncio.gather(*(run_client(client) for _ in range(clients)))
        status, text = await post(client, good)
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
    # Send the intact files first, so that memory allocated on the first use of each decoder does not count as growth.
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
        for process, mb in after.growth_mb(before).items():
            print(f"{process}: {after.held_mb[process]:.0f} MB, {mb:+.0f} MB")
        print(f"temporary files: {len(before.temporary_files)} before, {len(after.temporary_files)} after")
    sys.exit(bool(report.failures or report.wrong_texts))


if __name__ == "__main__":
    main()
