"""CPU seconds of a running server, by kind of process."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import psutil

Kind = Literal["proxy", "ingress", "decoder", "replica", "raylet+gcs", "other", "client"]
"""`decoder`: the processes below an ingress. `replica`: those of the models. `other`: the rest of Ray and Serve. `client`: this
process."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Key:
    """One process, or the processes below it that have ended."""

    process_id: int
    started_s: float
    is_ended_below: bool = False


Snapshot = Mapping[Key, tuple[Kind, float]]
"""CPU seconds so far."""


def snapshot(server_id: int) -> Snapshot:
    """Of the processes below `server_id`, and of this one."""
    seconds: dict[Key, tuple[Kind, float]] = {}
    below_ingress: set[int] = set()
    for process in psutil.Process(server_id).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            kind = "decoder" if process.pid in below_ingress else _kind(process)
            times, key = process.cpu_times(), Key(process.pid, process.create_time())
            seconds[key] = (kind, times.user + times.system)
            if kind in ("ingress", "decoder"):
                below_ingress |= {child.pid for child in process.children(recursive=True)}
                ended = Key(process.pid, process.create_time(), is_ended_below=True)
                seconds[ended] = ("decoder", times.children_user + times.children_system)
    this = psutil.Process()
    seconds[Key(this.pid, this.create_time())] = ("client", sum(this.cpu_times()[:2]))
    return seconds


def spent(before: Snapshot, after: Snapshot) -> dict[Kind, float]:
    """CPU seconds between two snapshots. A decoder that ends in between is counted, other processes only if they live on."""
    seconds = dict.fromkeys(KINDS, 0.0)
    for key, (kind, total) in after.items():
        seconds[kind] += total - before.get(key, (kind, 0.0))[1]
    for key, (kind, total) in before.items():
        # What it had spent before is among the ended ones below its parent.
        if kind == "decoder" and key not in after:
            seconds[kind] -= total
    return seconds


def _kind(process: psutil.Process) -> Kind:
    """Ray writes a title in place of the arguments; a method's name may follow."""
    if process.name() in ("raylet", "gcs_server"):
        return "raylet+gcs"
    title = " ".join(process.cmdline())
    if not title.startswith("ray::"):
        return "other"
    name = title.rpartition(":")[2].strip()
    if name.partition(".")[0] == "ProxyActor":
        return "proxy"
    if name.partition(".")[0] == "ingress":
        return "ingress"
    return "replica" if name.startswith("model ") else "other"
