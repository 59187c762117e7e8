"""What a running server holds, sampled again and again: memory, threads, descriptors of its processes, temporary files."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

from testing.server import DECODER, Server, status_bytes

MIB = 1 << 20

PARTS = 5
"""Of the second half of the samples: three minutes each in half an hour. Every 10,000 messages, about once a minute, protobuf has
glibc return the free memory of a process to the system (`upb_trim_allocfunc`), so each part has a value with little of it."""

MAX_CHANCE = 0.05

OWN_NAMES = ("ingress", "model ", "status", "ProxyActor", "ServeController", "raylet", "gcs_server")


@dataclass(frozen=True, slots=True)
class Held:
    """By the processes of one name together."""

    processes: float = 0
    own_mib: float = 0
    """Memory of their own; see `testing.server.held_bytes` for what is not part of it. Shared memory of windows is."""
    rss_mib: float = 0
    """With the pages of files, some of which processes share."""
    threads: float = 0
    descriptors: float = 0
    memfds: float = 0
    """Open pieces of shared memory."""
    files: float = 0
    """Open temporary files: uploads, whose files have no names."""

    def __add__(self, other: "Held") -> "Held":
        return Held(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Held)))


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    """Of the monotonic clock."""
    held: Mapping[str, Held]
    """By name of the processes."""
    named_files: int
    """Files in the server's folder for temporary ones."""


def sample(server: Server) -> Sample:
    """What the server holds now."""
    held = dict[str, Held]()
    root = psutil.Process(server.process_id)
    for process in [root, *root.children(recursive=True)]:
        # It may end meanwhile.
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, KeyError):
            name = "serve run" if process is root else name_of(process)
            held[name] = held.get(name, Held()) + _held(process, server.temporary)
    return Sample(time.monotonic(), held, sum(path.is_file() for path in server.temporary.rglob("*")))


def name_of(process: psutil.Process) -> str:
    """As in docs/design.md; the dashboard of Ray and its agents together."""
    arguments = process.cmdline()
    title = " ".join(arguments)
    if any(part.startswith(DECODER) for part in arguments):
        return "decoder"
    name = title.rpartition(":")[2].strip().partition(".")[0] if title.startswith("ray::") else process.name()
    return name if name.startswith(OWN_NAMES) else "dashboard, agents"


def _held(process: psutil.Process, temporary: Path) -> Held:
    own = status_bytes(process.pid, "RssAnon") + status_bytes(process.pid, "RssShmem")
    links = list(_links(process.pid))
    return Held(
        processes=1,
        own_mib=own / MIB,
        rss_mib=status_bytes(process.pid, "VmRSS") / MIB,
        threads=process.num_threads(),
        descriptors=len(links),
        memfds=sum(link.startswith("/memfd:") for link in links),
        files=sum(link.startswith(str(temporary)) for link in links),
    )


def _links(process_id: int) -> Iterator[str]:
    folder = f"/proc/{process_id}/fd"
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"{folder}/{number}")


@dataclass(frozen=True, slots=True)
class Trend:
    """One figure of the processes of one name, in the second half of the samples."""

    name: str
    figure: str
    mean: float
    growth: float
    """From the first to the last sample, by a line fitted through the lowest values of all PARTS. What requests in progress hold,
    which comes and goes, would hide growth in a mean; what is never given back raises the lowest values."""
    chance: float
    """The probability of such a line where nothing grows: what requests in progress hold leaves the lowest values a little noise,
    too."""
    limit: float

    @property
    def grows(self) -> bool:
        return self.growth > self.limit and self.chance < MAX_CHANCE


def trends(samples: Sequence[Sample], limits: Mapping[str, float]) -> list[Trend]:
    """Of every name that is there in all samples of the second half, for every figure with a limit. A sum of all processes is
    named `all`."""
    half = samples[len(samples) // 2 :]
    names = sorted(set.intersection(*(set(sample.held) for sample in half)))
    found = [
        _trend(name, figure, [getattr(sample.held[name], figure) for sample in half], limit)
        for name in names
        for figure, limit in limits.items()
    ]
    everything = [sum(sample.held.values(), Held()) for sample in half]
    found += [_trend("all", figure, [getattr(held, figure) for held in everything], limit) for figure, limit in limits.items()]
    return [*found, _trend("all", "named files", [sample.named_files for sample in half], limits["files"])]


def _trend(name: str, figure: str, values: Sequence[float], limit: float) -> Trend:
    lowest = [float(np.min(part)) for part in np.array_split(np.asarray(values, float), PARTS)]
    line = stats.linregress(np.arange(PARTS), lowest, alternative="greater")
    return Trend(name, figure, float(np.mean(values)), float(line.slope) * PARTS, float(line.pvalue), limit)
