"""The board: what every replica last said of itself, by heartbeat. To ask a replica would wake a model that is unloaded."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.service import ReplicaStatus

HEARTBEAT_S = 1.0
SILENT_AFTER_S = 15.0
"""A replica that has said nothing for so long is gone."""


@dataclass(frozen=True, slots=True)
class News:
    """What an ingress replica learns when it reports."""

    models: dict[str, tuple[ReplicaStatus, ...]]
    """Replicas heard of lately, by model name."""
    is_draining: bool
    """No more requests are to be taken on."""


@dataclass(slots=True)
class _Ingress:
    heard_s: float
    is_done: bool
    """It takes on nothing more and works on nothing."""


class Board:
    """One per application. Belongs to one event loop."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._models: dict[str, dict[str, tuple[float, ReplicaStatus]]] = {}
        self._ingresses: dict[str, _Ingress] = {}
        self._is_draining = False

    async def report_model(self, model: str, status: ReplicaStatus) -> None:
        """A model replica says how it fares."""
        self._models.setdefault(model, {})[status.replica_id] = (self._now_s(), status)

    async def report_ingress(self, replica_id: str, *, is_done: bool) -> News:
        """An ingress replica says whether it has been told of draining and works on nothing any more; it is told the news."""
        self._ingresses[replica_id] = _Ingress(self._now_s(), is_done)
        return News(self._lately(), self._is_draining)

    async def drain(self) -> bool:
        """Have every ingress replica refuse new requests from its next report on; gives whether all of them are done."""
        self._is_draining = True
        oldest_s = self._now_s() - SILENT_AFTER_S
        heard = [ingress for ingress in self._ingresses.values() if ingress.heard_s >= oldest_s]
        return bool(heard) and all(ingress.is_done for ingress in heard)

    def _lately(self) -> dict[str, tuple[ReplicaStatus, ...]]:
        oldest_s = self._now_s() - SILENT_AFTER_S
        for replicas in self._models.values():
            for replica_id in [r for r, (at_s, _) in replicas.items() if at_s < oldest_s]:
                del replicas[replica_id]
        return {model: tuple(status for _, status in replicas.values()) for model, replicas in self._models.items()}
