"""Settings in, Serve application out: which deployments there are, and the resources of each.

Serve reads the annotation of `build_app` at run time to validate the YAML's `args`. With `from __future__ import annotations` in
this module it would silently pass a raw dict instead.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import ray
from dotenv import load_dotenv
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from serve_app.api.errors import proxy_responses
from serve_app.cluster import proxies
from serve_app.cluster.autoscaling import AudioPolicy
from serve_app.cluster.status import StatusRegistry
from serve_app.deployments import ModelReplica
from serve_app.diarizer_deployment import DiarizerReplica
from serve_app.engine.batch_policy import expected_batch_audio_s, max_batch_windows
from serve_app.ingress import Ingress
from serve_app.jobs import stores
from serve_app.observe import tracers
from serve_app.replica_settings import DiarizerSettings, ReplicaSettings
from serve_app.settings import ModelSettings, Settings

# Before Serve builds the settings, which read the environment. Variables that are already set win over the file.
load_dotenv(".env")

UNLIMITED = 1_000_000
"""For Serve's own queues. The ingress refuses requests above the limits with errors of its own, and windows wait in a replica's
queue, which knows lanes and fair queueing, not in Serve's routers."""

CORES_PER_INGRESS = 8
"""CPU cores of a node that one ingress replica keeps busy: its own, and those of the decoders whose windows it passes on."""

UPSCALE_DELAY_S = 5.0
"""Load must last this long before a replica is added, seconds."""

STEPS_PER_DIARIZER = 2
"""Steps in flight, so recordings in progress, for each replica of a diarizer: one running, one waiting."""

LOOK_BACK_S = 15.0
"""The calls in flight count by their mean over this time, seconds, until replicas have published a demand."""

PUBLISH_S = 1.0
"""How often replicas publish the demand, seconds. The audio of a burst is known at once; by default Serve asks every 10 s."""

NEVER_S = 1e9
"""A delay after which nothing happens any more, seconds."""

DRAIN_S = 600.0
"""Time for an ingress that is being replaced to finish its requests, seconds."""

MODEL_DRAIN_S = 30.0
"""Time for a model replica that is being replaced, seconds; the ingress retries windows that take longer on another one."""

HEALTH_CHECK_PERIOD_S = 5.0
"""Serve replaces a replica after three failed checks. They find a process that is stuck; a hung engine exits by itself."""

HEALTH_CHECK_TIMEOUT_S = 15.0
"""A check that takes longer has failed, seconds."""

ENVIRONMENT = {
    # Otherwise glibc gives each of a Ray worker's many threads an arena, which fill for an hour: by 1 MiB a minute in a replica
    # that does nothing, by 2 in a busy one.
    "MALLOC_ARENA_MAX": "1",
    # Otherwise the first large block that is freed has glibc take the next ones from its heap, which then has holes and does not
    # shrink. Blocks of this size, such as long answers, go back to the system.
    "MALLOC_MMAP_THRESHOLD_": str(256 << 10),
}
"""Of every process of the application that Serve starts."""

ScaledBy = Literal["audio", "calls"]
"""`calls`: Serve's own policy, by the calls in flight, which benchmarks/autoscaling.py compares with."""


def build_app(args: Settings) -> Application:
    """The application: an ingress, a status registry, and a deployment for each model and diarizer, which scales by itself."""
    tracers.check(args.tracing)
    return build_application(args)


def build_application(args: Settings, *, scaled_by: ScaledBy = "audio", publish_s: float = PUBLISH_S) -> Application:
    """See `build_app`, `ScaledBy` and PUBLISH_S.

    Serve's proxies are patched on the way: they run already, and answer for an ingress that is not there yet.
    """
    proxies.patch_present_proxies(*proxy_responses())
    # Of other secrets it does not tell.
    configuration = hashlib.sha256(args.model_dump_json().encode()).hexdigest()
    status_registry = _deploy(StatusRegistry, "status", args, num_replicas=1, ray_actor_options={"num_cpus": 0}).bind(
        configuration=configuration
    )
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    stores.check(args.jobs, len(nodes))
    cluster_gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
    node_cpus = [node["Resources"].get("CPU", 0.0) for node in nodes]
    hosts = [cpus for cpus in node_cpus if cpus >= args.ingress.cpus_per_replica] or [0.0]
    per_node = ingress_replicas_per_node(args, hosts)
    gpus = gpus_per_replica(args, cluster_gpus)
    models = {}
    for model in args.models:
        scaling = autoscaling(model, args, gpus[model.name], scaled_by, publish_s)
        models[model.name] = _model_deployment(model, args, gpus[model.name], scaling, status_registry)
    diarizers = {each.name: _diarizer_deployment(each, args, gpus[each.name], status_registry) for each in args.diarizers}
    ingress = _deploy(
        Ingress,
        "ingress",
        args,
        num_replicas=args.ingress.replicas or per_node * len(hosts),
        max_ongoing_requests=UNLIMITED,
        max_replicas_per_node=None if args.ingress.replicas else per_node,
        graceful_shutdown_timeout_s=DRAIN_S,
        ray_actor_options={"num_cpus": args.ingress.cpus_per_replica},
    )
    return ingress.bind(args, status_registry, models, diarizers, replicas_per_node=per_node, configuration=configuration)


def ingress_replicas_per_node(settings: Settings, node_cpus: Sequence[float]) -> int:
    """Number of ingress replicas on each of the nodes with so many CPUs, at most.

    Serve distributes them evenly, so the smallest node decides, unless the settings give a number for all nodes together.
    """
    if settings.ingress.replicas:
        return math.ceil(settings.ingress.replicas / len(node_cpus))
    return max(1, int(min(node_cpus) // CORES_PER_INGRESS))


def gpus_per_replica(settings: Settings, cluster_gpus: float) -> dict[str, float]:
    """GPUs to reserve per replica, by the name of a model or diarizer.

    Those that leave it open get a whole GPU each if the cluster has enough, else an equal fraction, so that everything in the
    file can be loaded on one small machine. Without GPUs, and for what uses none, it is 0.
    """
    every: list[ReplicaSettings] = [*settings.models, *settings.diarizers]
    left_open = [each for each in every if each.gpus_per_replica is None and wants_gpu(each)]
    per_gpu = math.ceil(len(left_open) / cluster_gpus) if cluster_gpus else 0
    share = math.floor(100 / max(per_gpu, 1)) / 100 if cluster_gpus else 0.0
    return {
        each.name: each.gpus_per_replica if each.gpus_per_replica is not None else share if each in left_open else 0.0
        for each in every
    }


def wants_gpu(model: ReplicaSettings) -> bool:
    """What is bundled is too small to gain from a GPU, and what is simulated uses no device."""
    return model.device != "cpu" and model.source not in ("bundled", "simulated")


def autoscaling(
    model: ModelSettings, settings: Settings, gpus: float, scaled_by: ScaledBy = "audio", publish_s: float = PUBLISH_S
) -> AutoscalingConfig:
    """How Serve scales a model whose replicas have so many GPUs."""
    batching, window_s = settings.batching, settings.windows_for(model).window_s
    by_audio = AutoscalingPolicy(policy_function=AudioPolicy, policy_kwargs={"target_wait_s": model.target_wait_s})  # type: ignore[no-untyped-call]
    return _scaling(
        model,
        # What counts until replicas publish the demand: more calls in flight than fill a batch.
        max_batch_windows(batching, window_s, expected_batch_audio_s(batching, on_gpu=gpus > 0)),
        policy=by_audio if scaled_by == "audio" else AutoscalingPolicy(),  # type: ignore[no-untyped-call]
        # Deprecated in favour of environment variables that Ray 2.60 does not read yet.
        metrics_interval_s=publish_s,
    )


def _scaling(of: ReplicaSettings, target_calls: float, **options: Any) -> AutoscalingConfig:
    """`target_calls`: calls in flight for each replica."""
    return AutoscalingConfig(
        min_replicas=of.min_replicas,
        max_replicas=of.max_replicas,
        target_ongoing_requests=target_calls,
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=of.idle_unload_s or NEVER_S,
        look_back_period_s=LOOK_BACK_S,
        **options,
    )


def _model_deployment(
    model: ModelSettings, settings: Settings, gpus: float, scaling: AutoscalingConfig, status_registry: Application
) -> Application:
    replicas = _engine_deployment(ModelReplica, f"model {model.name}", model, settings, gpus, scaling)
    return replicas.bind(
        model, settings.batching, settings.max_window_s(model), status_registry, settings.tracing, settings.log_format
    )


def _diarizer_deployment(
    diarizer: DiarizerSettings, settings: Settings, gpus: float, status_registry: Application
) -> Application:
    # By Serve's own policy: a recording has one call in flight for as long as it lasts.
    scaling = _scaling(diarizer, STEPS_PER_DIARIZER)
    replicas = _engine_deployment(DiarizerReplica, f"diarizer {diarizer.name}", diarizer, settings, gpus, scaling)
    return replicas.bind(diarizer, settings.batching.batch_timeout_s, status_registry, settings.log_format)


def _engine_deployment(
    what: type, name: str, of: ReplicaSettings, settings: Settings, gpus: float, scaling: AutoscalingConfig
) -> serve.Deployment:
    return _deploy(
        what,
        name,
        settings,
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=MODEL_DRAIN_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        ray_actor_options={"num_cpus": of.cpus_per_replica, "num_gpus": gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="serve_app.cluster.routing.LeastOutstandingRouter",  # type: ignore[arg-type]  # wrong in Ray 2.60
            request_router_kwargs={"drain_s": MODEL_DRAIN_S},
        ),
        autoscaling_config=scaling,
    )


def _deploy(what: type, name: str, settings: Settings, *, ray_actor_options: dict[str, Any], **options: Any) -> serve.Deployment:
    # An access log line per call is for client requests; calls between deployments are many per request.
    logging = LoggingConfig(encoding=settings.log_format.upper(), log_level=settings.log_level, enable_access_log=what is Ingress)
    resources = ray_actor_options | {"runtime_env": {"env_vars": ENVIRONMENT}}
    return serve.deployment(name=name, logging_config=logging, ray_actor_options=resources, **options)(what)
