"""What the benchmarks share: the simulated server, CPU time by process, and the report with its tables and the machine."""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

from testing.cpu_time import KINDS, Kind, Snapshot, snapshot, spent
from testing.paths import ROOT
from testing.server import START_S, Server, serve_run

CONFIG = ROOT / "configs" / "demo.yaml"

PLAIN_NICENESS = {"RAY_worker_niceness": "0"}
"""Environment of a server whose processes have the priority of what is measured beside it. Ray would give its workers less."""

SERVER_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "client")


def simulated_model(step_s: float = 0.0, seconds_per_audio_s: float = 0.0, *, replicas: int = 1) -> dict[str, Any]:
    """Settings of a model whose batches take `step_s` and `seconds_per_audio_s` for every second of padded audio."""
    return {
        "name": "simulated",
        "source": "simulated",
        "min_replicas": replicas,
        "max_replicas": replicas,
        # A replica that sleeps needs no core.
        "cpus_per_replica": 0,
        "simulation": {"step_s": step_s, "seconds_per_audio_s": seconds_per_audio_s},
    }


@contextmanager
def simulated_server(model: Mapping[str, Any], config: Path = CONFIG, **args: Any) -> Iterator[Server]:
    """A server of that simulated model, all of its replicas ready. `args` are further ones of the application."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_run(config, Path(folder), args={"models": [model], **args}, env=PLAIN_NICENESS) as server,
    ):
        until = time.monotonic() + START_S
        while sum(replica["state"] == "ready" for replica in server.model(model["name"])["replicas"]) < model["min_replicas"]:
            if time.monotonic() > until:
                raise RuntimeError(f"the replicas never became ready:\n{server.log}")
            time.sleep(0.2)
        yield server


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time of a server and its clients while something was measured."""

    wall_s: float
    cpu_s: Mapping[Kind, float]
    """By kind of process."""
    busiest_cores: Mapping[Kind, float]
    """CPU time per second of the busiest process of a kind: at 1 it uses a core in full."""
    elsewhere_cores: float
    """CPU time per second of processes that are no part of the measurement."""


class Meter:
    """Measures the CPU time of a server from now on."""

    def __init__(self, server: Server) -> None:
        self._server_id = server.process_id
        self._before, self._busy_before_s, self._started_s = snapshot(self._server_id), busy_s(), time.perf_counter()

    def stop(self, client_cpu_s: float | None = None) -> Usage:
        """CPU time so far. `client_cpu_s`: that of the clients, seconds, where they are not in this process."""
        wall_s, busy_after_s, after = time.perf_counter() - self._started_s, busy_s(), snapshot(self._server_id)
        cpu_s, busiest = spent(self._before, after), busiest_cores(self._before, after, wall_s)
        if client_cpu_s is not None:
            cpu_s["client"], busiest["client"] = client_cpu_s, client_cpu_s / wall_s
        elsewhere_s = busy_after_s - self._busy_before_s - sum(cpu_s.values())
        return Usage(wall_s, cpu_s, busiest, max(0.0, elsewhere_s / wall_s))


def busy_s() -> float:
    """CPU seconds of the whole machine so far."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def busiest_cores(before: Snapshot, after: Snapshot, wall_s: float) -> dict[Kind, float]:
    """CPU seconds per second of the busiest process of each kind, of those that live at the end."""
    cores = dict.fromkeys(KINDS, 0.0)
    for key, (kind, total) in after.items():
        if not key.is_ended_below:
            cores[kind] = max(cores[kind], (total - before.get(key, (kind, 0.0))[1]) / wall_s)
    return cores


ELSEWHERE = "load elsewhere, cores"
SPREAD = "slowest to fastest round"


def elsewhere_cell(usages: Iterable[Usage]) -> str:
    """The largest load of other programs in any of the measurements; `ELSEWHERE` heads it."""
    return f"{max(usage.elsewhere_cores for usage in usages):.2f}"


def spread_cell(rates: Sequence[float]) -> str:
    """The slowest and the fastest round; `SPREAD` heads it."""
    return f"{min(rates):,.0f} to {max(rates):,.0f}"


def cpu_cells(usages: Sequence[Usage], units: float, format_spec: str = ".2f") -> list[str]:
    """CPU seconds of all usages per unit, by kind of process, and of the server as a whole; `cpu_head` heads them."""
    totals = {kind: sum(usage.cpu_s[kind] for usage in usages) / units for kind in KINDS}
    server = sum(totals[kind] for kind in SERVER_KINDS)
    return [f"{value:{format_spec}}" for value in (*totals.values(), server)]


def cpu_head(title: str) -> list[str]:
    return [title, *KINDS, "server (all but client)"]


def percentiles(seconds: Sequence[float], percents: Sequence[float] = (50, 95, 99)) -> list[float]:
    """Percentiles of some times, seconds; NaN without any."""
    return [float(p) for p in np.percentile(seconds, percents)] if len(seconds) else [float("nan")] * len(percents)


def machine(**more: str) -> dict[str, str]:
    """This machine and the versions of what runs on it."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    libraries = {name: version(name) for name in ("av", "numpy", "ray", "torch")}
    return {
        "cores": str(os.cpu_count()),
        "cpu": models[0] if models else platform.processor(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        **libraries,
        "ffmpeg in av": av.ffmpeg_version_info,
        **more,
    }


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="where to write the results and a description of the machine")


def finish(path: Path | None, description: Mapping[str, str], note: str, tables: Sequence[str], **results: Any) -> None:
    """Print the machine, a line about the measurement and the tables; write the results to `path`, if there is one."""
    print("", ", ".join(f"{name} {value}" for name, value in description.items()), note, sep="\n")
    for part in tables:
        print("", part, sep="\n", flush=True)
    write_json(path, description, **results)


def write_json(path: Path | None, description: Mapping[str, str], **results: Any) -> None:
    """Write the results and the machine to `path`, if there is one."""
    if path is not None:
        path.write_text(json.dumps({"machine": description, **results}, indent=1) + "\n")
