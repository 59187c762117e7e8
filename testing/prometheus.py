"""A Prometheus that reads a running server, for tests of queries and alerts. Debian's package `prometheus` has the program."""

import contextlib
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from testing.server import Server, free_port

PROGRAM = "prometheus"
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus. `log` is what it has printed."""

    client: httpx2.Client
    log_path: Path

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API, `/api/v1`. Fails with its message, such as that of a wrong query."""
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """The values of all series that a query returns now, those that are not a number left out."""
        values = [float(series["value"][1]) for series in self.api("query", query=query)["result"]]
        return [value for value in values if not math.isnan(value)]


@contextlib.contextmanager
def prometheus(server: Server, folder: Path, rules: Path) -> Iterator[Prometheus]:
    """Scrape `/metrics` of the server every second, as the job `parakeet`, and evaluate the rules."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "parakeet", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]},
        ],
    }
    path, log_path, address = folder / "prometheus.yml", folder / "prometheus.log", f"127.0.0.1:{free_port()}"
    path.write_text(yaml.safe_dump(config))
    options = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with log_path.open("w") as log:
        process = subprocess.Popen([PROGRAM, *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx2.Client(base_url=f"http://{address}", timeout=30, trust_env=False) as client:
            _wait_until_up(client, process, log_path)
            yield Prometheus(client, log_path)
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(client: httpx2.Client, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx2.TransportError):
            if client.get("/-/ready").status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"Prometheus did not start:\n{log_path.read_text()}")
        time.sleep(0.1)
