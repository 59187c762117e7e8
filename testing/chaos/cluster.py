"""Three nodes of Ray on this machine, and the application on them, with simulated models: something to break."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.common import ReplicaState
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from testing.paths import ROOT
from testing.server import free_port, is_named

APPLICATION = "parakeet"
MODEL = "simulated"
HUB_MODEL, HUB_SOURCE = "from-the-hub", "owner/model"
SPEED = 50
"""Seconds of audio that a replica recognises in one second, about."""

REPLICA_CPUS = 2
SPOOL_MB = 400
"""Size of the disk for uploads, where there is one of its own."""

WAIT_S = 220.0


class ChaosCluster:
    """A context manager. The head node has an ingress, every other node an ingress and `replicas_per_node` model replicas; one
    node's worth of replicas more is asked for than there is room, so that a node that is added is used."""

    def __init__(self, nodes: int = 3, replicas_per_node: int = 2) -> None:
        self._workers = nodes - 1
        self._per_node = replicas_per_node
        self._stack = contextlib.ExitStack()
        self._cluster: Any = None
        self._nodes: list[tuple[Any, str]] = []
        """Every node with the base address of its proxy, the head first."""
        self.has_redis = shutil.which("redis-server") is not None
        self.has_spool = False
        """Whether uploads have a disk of their own, which can be filled."""
        self.hub_port = free_port()

    def __enter__(self) -> "ChaosCluster":
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        # Ray's sockets need short paths.
        self.folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True))
        )
        self.spool = self.folder / "spool"
        self.spool.mkdir()
        self.has_spool = stack.enter_context(_small_disk(self.spool))
        environment = {
            **{"RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"},
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "TMPDIR": str(self.spool)},
            **{"HF_ENDPOINT": f"http://127.0.0.1:{self.hub_port}", "HF_HOME": str(self.folder / "hub")},
            "PYTHONPATH": str(ROOT),
        }
        if self.has_redis:
            environment["RAY_REDIS_ADDRESS"] = stack.enter_context(_redis(self.folder))
        os.environ.pop("RAY_ADDRESS", None)
        os.environ |= environment
        self._cluster = Cluster()
        stack.callback(self._stop)
        self.add_node()
        ray.init(
            address=self._cluster.address,
            namespace=SERVE_NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": int(self.urls[0].rpartition(":")[2])})
        for _ in range(self._workers):
            self.add_node()
        self.deploy()
        self.wait_until_whole()

    def _stop(self) -> None:
        ray.shutdown()
        processes = [process for node, _ in self._nodes for process in _tree(node)]
        self._cluster.shutdown()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    def urls(self) -> list[str]:
        """Base addresses of the proxies, the head's first."""
        return [url for _, url in self._nodes]

    @property
    def log(self) -> str:
        """What Serve's processes have logged, the replicas and the ingresses among them."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("ray/session_2*/logs/serve/*.log"))

    def args(self, **changes: Any) -> dict[str, Any]:
        """The application's arguments."""
        replicas = self._per_node * (self._workers + 1)
        model = {
            **{"name": MODEL, "source": "simulated", "cpus_per_replica": REPLICA_CPUS},
            **{"min_replicas": replicas, "max_replicas": replicas},
            "simulation": {"step_s": 0.02, "seconds_per_audio_s": 1 / SPEED},
        }
        hub = {"name": HUB_MODEL, "source": HUB_SOURCE, "min_replicas": 0, "cpus_per_replica": 0}
        return {
            "models": [model, hub],
            # A live window is short, so that two cores suffice for the clients, the VAD and everything else.
            "live": {"step_s": 3.0, "left_s": 3.0, "right_s": 1.0},
            "batching": {"batch_timeout_s": 10.0},
            "decoding": {"processes": 1},
            "ingress": {"cpus_per_replica": 1},
        } | changes

    def deploy(self, **changes: Any) -> None:
        """As `serve deploy` does."""
        application = {"name": APPLICATION, "route_prefix": "/", "import_path": "serve_app.app:build_app"}
        client: Any = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application | {"args": self.args(**changes)}]}))

    def wait_until_removed(self) -> None:
        """Wait until Serve has taken the model out of the application, which `deploy` asked for."""
        name, until_s = f"model {MODEL}", time.monotonic() + WAIT_S
        while name in (names := set(serve.status().applications[APPLICATION].deployments)) or not names:
            if time.monotonic() > until_s:
                raise TimeoutError("the model is still there")
            time.sleep(0.05)

    def add_node(self) -> None:
        """The head, or another node. Returns once Ray has it."""
        port, is_head = free_port(), not self._nodes
        os.environ["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(port)
        where = {"object_store_memory": 100 << 20, "include_dashboard": False}
        cpus = 1 if is_head else 1 + REPLICA_CPUS * self._per_node
        more = {"gcs_server_port": free_port()} if is_head else {}
        node = self._cluster.add_node(num_cpus=cpus, **where, **more)
        self._nodes.append((node, f"http://127.0.0.1:{port}"))

    def lose_node(self, number: int) -> None:
        """All processes of a node are killed at once."""
        node, _ = self._nodes.pop(number)
        for process in _tree(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_gcs(self, seconds: float) -> None:
        """Ray's GCS is killed, and started again on the same data after a while."""
        head, _ = self._nodes[0]
        head.kill_gcs_server()
        time.sleep(seconds)
        head.start_gcs_server()

    def processes(self, name: str, number: int | None = None) -> list[psutil.Process]:
        """The processes of that name (see `Server.processes`), the oldest first; on one node, or on all."""
        found = []
        for node, _ in self._nodes if number is None else [self._nodes[number]]:
            for process in _tree(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if is_named(process.cmdline(), name):
                        found.append(process)
        return sorted(found, key=psutil.Process.create_time)

    def decoders(self) -> list[psutil.Process]:
        """The decoder processes of all ingresses."""
        found = []
        for process in (process for ingress in self.processes("ingress") for process in ingress.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("serve_app.decoders" in argument for argument in process.cmdline()):
                    found.append(process)
        return found

    def in_a_replica(self, change: Callable[[Any], None]) -> None:
        """Run a function in the process of a model replica, on the `ModelReplica`."""

        def run(actor: Any) -> None:
            change(actor._replica_impl._user_callable_wrapper._callable)

        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        for name in sorted(name for name in names if name.startswith(f"SERVE_REPLICA::{APPLICATION}#model {MODEL}#")):
            actor = ray.get_actor(name, namespace=SERVE_NAMESPACE)
            with contextlib.suppress(ray.exceptions.RayError):  # It is still waiting for a node.
                ray.get(actor.__ray_call__.remote(run), timeout=5)
                return
        raise RuntimeError("no replica answers")

    def is_whole(self) -> bool:
        """Whether every node that there is has its ingress, its proxy and its replicas, and Serve knows it."""
        workers = len(self._nodes) - 1
        try:
            application = serve.status().applications[APPLICATION]
            running = {n: d.replica_states.get(ReplicaState.RUNNING, 0) for n, d in application.deployments.items()}
            ready = httpx2.get(f"{self.urls[0]}/ready", timeout=5).json()["models"][0]["replicas"]
            healthy = [httpx2.get(f"{url}/-/healthz", timeout=5).status_code for url in self.urls]
        except (KeyError, ValueError, httpx2.TransportError, ray.exceptions.RayError):
            return False
        replicas = min(self._per_node * workers, self._per_node * (self._workers + 1))
        loaded = sum(replica["state"] == "ready" for replica in ready)
        ingresses = min(len(self._nodes), self._workers + 1)
        wanted = {f"model {MODEL}": replicas, "ingress": ingresses, "status": 1}
        return all(running.get(n) == count for n, count in wanted.items()) and loaded == replicas and set(healthy) == {200}

    def wait_until_whole(self) -> float:
        """Seconds that it took. Raises TimeoutError."""
        began_s = time.monotonic()
        while not self.is_whole():
            if time.monotonic() - began_s > WAIT_S:
                raise TimeoutError(f"the cluster did not become whole: {serve.status().applications}\n{self.log[-5000:]}")
            time.sleep(0.2)
        return time.monotonic() - began_s


def _tree(node: Any) -> list[psutil.Process]:
    """The processes below a node's raylet."""
    infos = node.all_processes.get("raylet", [])
    found = []
    for info in infos:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(info.process.pid).children(recursive=True)
    return found


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """The address of a Redis in which Ray's GCS keeps what it knows."""
    port = free_port()
    options: Mapping[str, str] = {
        "--port": str(port),
        "--bind": "127.0.0.1",
        "--dir": str(folder),
        "--save": "",
        "--appendonly": "no",
    }
    command: Sequence[str] = ["redis-server", *(part for option in options.items() for part in option)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own in that folder, where we may mount one."""
    size = f"size={SPOOL_MB}m"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    is_mounted = sys.platform == "linux" and os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
