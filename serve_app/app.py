"""Settings in, Serve application out: which deployments there are and what each one may use.

Serve reads the annotation of `build_app` at run time to validate the YAML's `args`; deferred annotations in this module would
make it pass a raw dict instead.
"""

import math
from typing import Any

import ray
from dotenv import load_dotenv
from ray import serve
from ray.serve import Application

from serve_app.board import Board
from serve_app.deployments import ModelReplica, batch_windows
from serve_app.ingress import Ingress
from serve_app.settings import ModelSettings, Settings

# Before Serve makes the settings, which read the environment; what is set there wins.
load_dotenv(".env")

UNLIMITED = 1_000_000
"""For Serve's own queues. A request over the limits is refused by the ingress with its own words; a window over them waits in a
replica's queue, where lanes and turns hold."""

UPSCALE_DELAY_S = 5.0
LOOK_BACK_S = 15.0
NEVER_S = 1e9
DRAIN_S = 600.0
"""What an ingress that is being replaced gets to finish its requests."""

MODEL_DRAIN_S = 30.0
"""What a model replica gets; windows that take longer are sent again to another."""

HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 15.0
"""Serve replaces a replica after three failures. They find a process that does not move; a hung engine ends its own."""


def build_app(args: Settings) -> Application:
    """The application: an ingress, a board, and one deployment per model so that each scales by itself."""
    board = _deploy(Board, "board", args, num_replicas=1, ray_actor_options={"num_cpus": 0}).bind()
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cluster_gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
    hosts = sum(node["Resources"].get("CPU", 0.0) >= args.ingress.cpus_per_replica for node in nodes)
    gpus = gpus_per_replica(args, cluster_gpus)
    models = {model.name: _model_deployment(model, args, gpus[model.name], board) for model in args.models}
    ingress = _deploy(
        Ingress,
        "ingress",
        args,
        num_replicas=args.ingress.replicas or max(1, hosts),
        max_ongoing_requests=UNLIMITED,
        max_replicas_per_node=None if args.ingress.replicas else 1,
        graceful_shutdown_timeout_s=DRAIN_S,
        ray_actor_options={"num_cpus": args.ingress.cpus_per_replica},
    )
    return ingress.bind(args, board, models)


def gpus_per_replica(settings: Settings, cluster_gpus: float) -> dict[str, float]:
    """GPUs to reserve per replica, by model name.

    A model that leaves it open takes a whole GPU if there is one for each such model, else an equal fraction, so that every model
    of the file can be loaded on one small machine. Without GPUs, and for models that need none, it is 0.
    """
    open_models = [m for m in settings.models if m.gpus_per_replica is None and wants_gpu(m)]
    models_per_gpu = math.ceil(len(open_models) / cluster_gpus) if cluster_gpus else 0
    share = math.floor(100 / max(models_per_gpu, 1)) / 100 if cluster_gpus else 0.0
    return {
        m.name: m.gpus_per_replica if m.gpus_per_replica is not None else share if m in open_models else 0.0
        for m in settings.models
    }


def wants_gpu(model: ModelSettings) -> bool:
    """The bundled model is faster on a CPU than a GPU is worth, and a simulated one runs nowhere."""
    return model.device != "cpu" and model.source not in ("bundled", "simulated")


def _model_deployment(model: ModelSettings, settings: Settings, gpus: float, board: Application) -> Application:
    batching = settings.batching
    window_s = settings.windows_for(model).window_s
    return _deploy(
        ModelReplica,
        f"model {model.name}",
        settings,
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=MODEL_DRAIN_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        ray_actor_options={"num_cpus": model.cpus_per_replica, "num_gpus": gpus},
        autoscaling_config={
            "min_replicas": model.min_replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": batch_windows(batching, window_s, on_gpu=gpus > 0),
            "upscale_delay_s": UPSCALE_DELAY_S,
            "downscale_delay_s": model.idle_unload_s or NEVER_S,
            "look_back_period_s": LOOK_BACK_S,
        },
    ).bind(model, batching, window_s, board)


def _deploy(what: type, name: str, settings: Settings, **options: Any) -> serve.Deployment:
    # A line per call is for requests of clients; calls between deployments happen many times for each.
    logging = {"log_level": settings.log_level, "enable_access_log": what is Ingress}
    return serve.deployment(name=name, logging_config=logging, **options)(what)
