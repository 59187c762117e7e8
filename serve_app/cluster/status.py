"""The status registry: the last status that every replica reported, by heartbeat. Asking it would load an unloaded model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from serve_app.cluster.demand import Demand
from serve_app.replica_settings import ReplicaSettings

HEARTBEAT_S = 1.0
"""Interval between the reports of a replica, seconds."""

EXPIRE_S = 15.0
"""A replica that has not reported for this long is gone, seconds."""

ModelState = Literal["unloaded", "starting", "downloading", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What one replica of a model reports. One of a diarizer leaves at their defaults what only models have."""

    replica_id: str
    state: ModelState
    device: str = ""
    precision: str = ""
    decoder: str = ""
    max_batch_audio_s: float = 0.0
    """Maximum padded audio of its batches, seconds."""
    takes_keywords: bool = True
    """False once a model without keywords is loaded."""
    fast_paths: tuple[str, ...] = ()
    fast_paths_left_out: tuple[str, ...] = ()
    """Each with its reason."""
    detail: str = ""
    """Progress of a download, or why the model is unavailable."""
    batches: int = 0
    windows: int = 0
    largest_batch: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A configured model or diarizer, and its replicas."""

    model: ReplicaSettings
    replicas: tuple[ReplicaStatus, ...]

    @property
    def state(self) -> ModelState:
        """The best state of any replica; `unloaded` without replicas."""
        states = {replica.state for replica in self.replicas}
        ranked: tuple[ModelState, ...] = ("ready", "loading", "downloading", "starting", "failed")
        return next((state for state in ranked if state in states), "unloaded")

    @property
    def detail(self) -> str:
        """Of the first replica in that state."""
        return next((replica.detail for replica in self.replicas if replica.state == self.state), "")

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served: the model is loaded, or loads on demand."""
        return self.state == "ready" or self.model.min_replicas == 0


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What an ingress replica receives when it reports."""

    models: dict[str, tuple[ReplicaStatus, ...]]
    """Replicas that reported lately, by the name of their model or diarizer."""
    is_draining: bool
    """The ingress must refuse new requests."""
    configuration: str = ""
    """Names the configuration that is deployed. That of an ingress which Serve is replacing is another one."""


@dataclass(frozen=True, slots=True)
class _Ingress:
    reported_at_s: float
    is_drained: bool
    demands: Mapping[str, Demand]
    """By model name."""


class StatusRegistry:
    """One per application. Belongs to one event loop."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic, *, configuration: str = "") -> None:
        self._now_s = now_s
        self._configuration = configuration
        self._models: dict[str, dict[str, tuple[float, ReplicaStatus]]] = {}
        self._ingresses: dict[str, _Ingress] = {}
        self._is_draining = False

    async def report_model(self, model: str, status: ReplicaStatus) -> Demand:
        """Take the status of a model replica; return the demand of all ingress replicas for its model."""
        self._models.setdefault(model, {})[status.replica_id] = (self._now_s(), status)
        return Demand.total(ingress.demands[model] for ingress in self._recent_ingresses() if model in ingress.demands)

    async def report_ingress(self, replica_id: str, *, is_drained: bool, demands: Mapping[str, Demand] = {}) -> ClusterStatus:
        """Take the status of an ingress replica; `is_drained`: it refuses requests and has none in progress; `demands`: of its
        jobs, by model name."""
        self._ingresses[replica_id] = _Ingress(self._now_s(), is_drained, demands)
        return ClusterStatus(self._recent_models(), self._is_draining, self._configuration)

    async def drain(self) -> bool:
        """Have every ingress replica refuse new requests from its next report on; return whether all of them are drained."""
        self._is_draining = True
        ingresses = self._recent_ingresses()
        return bool(ingresses) and all(ingress.is_drained for ingress in ingresses)

    def _recent_ingresses(self) -> list[_Ingress]:
        expired_s = self._now_s() - EXPIRE_S
        return [ingress for ingress in self._ingresses.values() if ingress.reported_at_s >= expired_s]

    def _recent_models(self) -> dict[str, tuple[ReplicaStatus, ...]]:
        expired_s = self._now_s() - EXPIRE_S
        for replicas in self._models.values():
            for replica_id in [r for r, (at_s, _) in replicas.items() if at_s < expired_s]:
                del replicas[replica_id]
        return {model: tuple(status for _, status in replicas.values()) for model, replicas in self._models.items()}
