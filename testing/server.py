"""Starts the real thing, `serve run`, on a free port of this machine, for tests that drive it as its users do."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from testing.paths import ROOT

DECODER = "serve_app.decoders.worker"
"""The module that a decoder process runs."""

START_S = 180.0
STOP_S = 60.0

FREE_PORTS = range(20_000, 32_768)
"""Above those of Ray's workers and below those that Linux chooses."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and a client for it. `log` is everything it has printed so far."""

    url: str
    client: httpx2.Client
    log_path: Path
    process_id: int
    temporary: Path
    """Where it puts its temporary files."""
    config: Path
    """Serve's configuration that it was started with."""

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def processes(self, name: str) -> list[psutil.Process]:
        """Its processes of that name: `ProxyActor`, `ingress`, `status`, `model NAME`."""
        return self._processes(lambda arguments: is_named(arguments, name))

    def decoders(self) -> list[psutil.Process]:
        """Its decoder processes."""
        return self.processes_with(DECODER)

    def processes_with(self, argument: str) -> list[psutil.Process]:
        """Its processes that have an argument which begins like that."""
        return self._processes(lambda arguments: any(part.startswith(argument) for part in arguments))

    def uploads(self, process: psutil.Process) -> set[str]:
        """Files in its temporary folder, with or without a name there, that one of its processes has open."""
        return {file for file in open_files(process) if file.startswith(f"{self.temporary}/")}

    def _processes(self, matches: Callable[[list[str]], bool]) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process_id).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if matches(process.cmdline()):
                    found.append(process)
        return found

    def run_in_cluster(self, program: str) -> None:
        """Run Python code, connected to the server's Ray cluster, to its end; `dashboard` has the address of Ray's dashboard."""
        of_ray = self.processes_with("--gcs-address=")[0]
        (address,) = [part.partition("=")[2] for part in of_ray.cmdline() if part.startswith("--gcs-address=")]
        begin = f"import ray; dashboard = 'http://' + ray.init({address!r}, log_to_driver=False).dashboard_url\n"
        # With its environment, which says how to authenticate.
        subprocess.run([sys.executable, "-c", begin + program], env=of_ray.environ(), check=True, cwd=ROOT)

    def deploy(self, args: Mapping[str, Any]) -> None:
        """`serve deploy` with these arguments of the application in the place of its own. Returns while Serve is at it."""
        content = yaml.safe_load(self.config.read_text())
        content["applications"][0]["args"] |= args
        path = self.config.with_stem("changed")
        path.write_text(yaml.safe_dump(content))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(path), "--address"]
        self.run_in_cluster(f"import subprocess, sys; subprocess.run([*{command!r}, dashboard], check=True)")

    def transcribe(self, data: bytes, **fields: Any) -> httpx2.Response:
        return self.client.post("/v1/audio/transcriptions", files={"file": ("audio.wav", data)}, data=fields)

    def model(self, name: str) -> dict[str, Any]:
        """What /ready tells of a model."""
        models: list[dict[str, Any]] = self.client.get("/ready").json()["models"]
        return next(model for model in models if model["id"] == name)

    def wait_for_state(self, name: str, state: str, within_s: float = START_S) -> dict[str, Any]:
        """Wait until a model has that state; says what it was instead when it does not come to it."""
        until = time.monotonic() + within_s
        while (model := self.model(name))["state"] != state:
            assert time.monotonic() < until, f"{name} never became {state}: {model}"
            time.sleep(0.2)
        return model


@contextlib.contextmanager
def serve_run(
    config: Path,
    folder: Path,
    *,
    args: Mapping[str, Any] = {},
    env: Mapping[str, str] = {},
    dot_env: Mapping[str, str] = {},
    drains: bool = False,
) -> Iterator[Server]:
    """`serve run` on that config, listening on 127.0.0.1, until the block ends. `args` override the application's.

    With `drains` it is `python -m serve_app.run` instead. With `dot_env` it starts in `folder`, where a `.env` has that and a
    PORT that is not the config's.
    """
    port = free_port()
    if dot_env:
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in {**dot_env, "PORT": str(port)}.items()))
    content = yaml.safe_load(config.read_text())
    content["http_options"] = {"host": "127.0.0.1", "port": free_port() if dot_env else port}
    arguments = content["applications"][0]["args"]
    if "jobs" in arguments:
        arguments["jobs"]["directory"] = str(folder / "jobs")
    arguments |= args
    # What is measured and counted is one ingress process, on a machine with many cores too.
    arguments["ingress"] = {"replicas": 1} | arguments.get("ingress", {})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    log_path = folder / "serve.log"
    program = ["-m", "serve_app.run"] if drains else [str(Path(sys.executable).parent / "serve"), "run"]
    command = [sys.executable, *program, str(path)]
    own = {
        # A cluster of its own, with a dashboard port and folder that no other cluster of this machine uses.
        **{"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"},
        # Ray's sockets, whose paths must be short, stay where they always are.
        "RAY_TMPDIR": "/tmp",
    }
    # Not in `folder`, which may be deep: sockets are in it too, and Ray waits a minute for a dashboard that cannot make its own.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        with log_path.open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=folder if dot_env else ROOT,
                env={**os.environ, **own, "TMPDIR": temporary, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
                server = Server(f"http://127.0.0.1:{port}", client, log_path, process.pid, Path(temporary), path)
                _wait_until_up(server, process)
                yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_named(arguments: list[str], name: str) -> bool:
    """Whether these are the arguments of one of Ray's workers of that name."""
    # Ray writes a title in place of the arguments; a method's name may follow.
    title = " ".join(arguments).rpartition(":")[2].strip()
    return title == name or title.startswith(f"{name}.")


def open_files(process: psutil.Process) -> set[str]:
    """What a process has open on disk, files without a name included."""
    links = {link for _, link in _descriptors(process)}
    return {link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/proc/"))}


def has_windows(process: psutil.Process) -> bool:
    """Whether a replica has copied audio from the memory of an ingress: only then does its own have pages."""
    memory = [descriptor for descriptor, link in _descriptors(process) if link.startswith("/memfd:audio")]
    return bool(memory) and all(descriptor.stat().st_blocks > 0 for descriptor in memory)


def _descriptors(process: psutil.Process) -> Iterator[tuple[Path, str]]:
    """What a process has open: each descriptor, and what it leads to."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield descriptor, str(descriptor.readlink())


def held_bytes(process: psutil.Process) -> int:
    """Memory of a process's own. Pages of files are not: Linux takes those of idle processes away and brings them back when they
    are used, which looks like growth. Nor are those of Ray's object store, which a process has once it has read there."""
    return status_bytes(process.pid, "RssAnon")


def status_bytes(process_id: int, field: str) -> int:
    """A size in a process's status, such as `VmPeak` (see proc_pid_status(5))."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def _wait_until_up(server: Server, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx2.TransportError):
            if server.client.get("/health").status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server did not start:\n{server.log}")
        time.sleep(0.2)


def free_port() -> int:
    """A TCP port that nothing listens on. Processes of Ray, which take ports of the system's choice and of Ray's own range for
    workers while a server starts, do not get it either."""
    while True:
        port = random.SystemRandom().choice(FREE_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
