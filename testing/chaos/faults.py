"""What can break in a cluster. Each fault is a function that breaks it and returns once that is done; some mend it again."""

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from ray.serve.context import _get_global_client

from serve_app.errors import EngineBroken
from serve_app.model_source import bundled_model_path
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.chaos.cluster import APPLICATION, HUB_MODEL, HUB_SOURCE, MODEL, ChaosCluster
from testing.fake_hub import FakeHub

GCS_AWAY_S = 5.0
HUB_WAIT_S = 200.0
"""A model is loaded much sooner."""

UPLOAD_S = 600.0
"""Length of the file that finds the disk full, seconds of audio."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`run` returns what else a client saw; `entries`: the nodes that the clients of the load use, the first of them at first."""

    name: str
    run: Callable[[ChaosCluster], str]
    entries: tuple[int, ...] = (0,)
    removes: bool = False
    """It takes away what the clients use, for good: they get their answers, and then it is deployed again."""
    replaces: bool = False
    """Serve replaces the ingress replicas, which go on until their last request has ended: streams have to end too."""
    unless: Callable[[ChaosCluster], str] = lambda cluster: ""
    """Why it cannot be tried here; empty if it can."""


def nothing(cluster: ChaosCluster) -> str:
    return ""


def replica_killed(cluster: ChaosCluster) -> str:
    cluster.processes(f"model {MODEL}")[0].kill()
    return ""


def replica_stuck(cluster: ChaosCluster) -> str:
    """The whole process stops."""
    cluster.processes(f"model {MODEL}")[0].send_signal(signal.SIGSTOP)
    return ""


def engine_hangs(cluster: ChaosCluster) -> str:
    """A batch never ends; the process lives on."""

    def change(replica: Any) -> None:
        replica._engine.recognise = lambda batch: time.sleep(1e6)

    cluster.in_a_replica(change)
    return ""


def engine_leaks(cluster: ChaosCluster) -> str:
    """Every batch keeps 50 MB, of 500 MB that the process may still take."""

    def change(replica: Any) -> None:
        recognise, kept = replica._engine.recognise, []
        with open("/proc/self/statm") as file:
            used_bytes = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (500 << 20), resource.RLIM_INFINITY))

        def leaking(batch: Any) -> Any:
            kept.append(np.ones(50 << 20, np.uint8))
            return recognise(batch)

        replica._engine.recognise = leaking

    cluster.in_a_replica(change)
    return ""


def device_error(cluster: ChaosCluster) -> str:
    """As after a fatal error of CUDA."""

    def change(replica: Any) -> None:
        def broken(batch: Any) -> Any:
            raise EngineBroken("The device is lost.")

        replica._engine.recognise = broken

    cluster.in_a_replica(change)
    return ""


def every_batch_fails(cluster: ChaosCluster) -> str:
    def change(replica: Any) -> None:
        def failing(batch: Any) -> Any:
            raise RuntimeError("this batch fails, as every one")

        replica._engine.recognise = failing

    cluster.in_a_replica(change)
    return ""


def node_with_replicas_lost(cluster: ChaosCluster) -> str:
    cluster.lose_node(1)
    return ""


def node_with_the_ingress_lost(cluster: ChaosCluster) -> str:
    """The node whose proxy and ingress the clients use."""
    cluster.lose_node(1)
    return ""


def node_added(cluster: ChaosCluster) -> str:
    cluster.add_node()
    return ""


def ingress_killed(cluster: ChaosCluster) -> str:
    cluster.processes("ingress", 0)[0].kill()
    return ""


def decoder_killed(cluster: ChaosCluster) -> str:
    for process in cluster.decoders():
        process.kill()
    return ""


def proxy_killed(cluster: ChaosCluster) -> str:
    cluster.processes("ProxyActor", 0)[0].kill()
    return ""


def controller_killed(cluster: ChaosCluster) -> str:
    cluster.processes("ServeController")[0].kill()
    return ""


def registry_killed(cluster: ChaosCluster) -> str:
    cluster.processes("status")[0].kill()
    return ""


def gcs_killed(cluster: ChaosCluster) -> str:
    cluster.lose_gcs(GCS_AWAY_S)
    return ""


def disk_full(cluster: ChaosCluster) -> str:
    """While it is full, a large upload comes; then there is room again."""
    filler = cluster.spool / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    refused = _upload(cluster)
    filler.unlink()
    return f"an upload: {refused}; with room again: {_upload(cluster)}"


def hub_gone(cluster: ChaosCluster) -> str:
    """A model that is not loaded yet is asked for while its hub is gone, and again once it is back."""
    gone = _upload(cluster, HUB_MODEL, 2.0)
    with FakeHub(bundled_model_path(), repository=HUB_SOURCE, port=cluster.hub_port):
        back, until_s = "", time.monotonic() + HUB_WAIT_S
        while not back.startswith("200") and time.monotonic() < until_s:
            back = _upload(cluster, HUB_MODEL, 2.0)
            time.sleep(1)
    return f"hub gone: {gone}; back: {back}"


def configuration_changed(cluster: ChaosCluster) -> str:
    cluster.deploy(log_level="WARNING")
    return ""


def model_removed(cluster: ChaosCluster) -> str:
    """As `serve deploy` of a configuration without it does. Returns once Serve begins with it."""
    others = [model for model in cluster.args()["models"] if model["name"] != MODEL]
    cluster.deploy(models=others)
    cluster.wait_until_removed()
    return ""


def application_removed(cluster: ChaosCluster) -> str:
    client: Any = _get_global_client()
    client.delete_apps([APPLICATION], blocking=False)
    return ""


FAULTS = (
    Fault("nothing", nothing),
    Fault("a model replica is killed", replica_killed),
    Fault("a model replica's process is stuck", replica_stuck),
    Fault("a model replica's batch hangs", engine_hangs),
    Fault("a model replica leaks memory", engine_leaks),
    Fault("a fatal device error", device_error),
    Fault("a replica fails every batch", every_batch_fails),
    Fault("all decoder processes are killed", decoder_killed),
    Fault("the ingress is killed", ingress_killed, (0, 1)),
    Fault("the proxy is killed", proxy_killed, (0, 1)),
    Fault("the controller is killed", controller_killed),
    Fault("the status registry is killed", registry_killed),
    Fault(
        f"the GCS is killed and started again after {GCS_AWAY_S:.0f} s",
        gcs_killed,
        unless=lambda cluster: "" if cluster.has_redis else "no redis-server here",
    ),
    Fault(
        "the disk for uploads is full",
        disk_full,
        unless=lambda cluster: "" if cluster.has_spool else "no file system can be mounted here",
    ),
    Fault("the hub is gone, and back", hub_gone),
    Fault("the configuration is changed", configuration_changed, replaces=True),
    Fault("the model is removed", model_removed, removes=True),
    Fault("the application is removed", application_removed, removes=True),
    Fault("a node with replicas is lost", node_with_replicas_lost),
    Fault("a node is added", node_added),
    Fault("the node that clients use is lost", node_with_the_ingress_lost, (1, 0)),
    Fault("a node is added again", node_added),
)
"""In the order in which they are tried: what was lost is added again."""


def _upload(cluster: ChaosCluster, model: str = MODEL, seconds: float = UPLOAD_S) -> str:
    """Status and error code of an upload."""
    noise = np.random.default_rng(1).integers(-8000, 8000, round(seconds * SAMPLE_RATE), dtype=np.int16)
    url = f"{cluster.urls[0]}/v1/audio/transcriptions"
    answer = httpx2.post(url, files={"file": ("a.wav", media.wav(noise))}, data={"model": model}, timeout=120)
    if answer.status_code == 200:
        return "200"
    return f"{answer.status_code} {answer.json()['error']['code']}"
