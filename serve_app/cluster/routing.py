"""How Serve's router in an ingress chooses the replica of a model that gets a window."""

import itertools
import random
from collections import Counter

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica


class LeastOutstandingRouter(FIFOMixin, RequestRouter):
    """Chooses the replica that has the fewest windows of this ingress; among equals, the one that was not chosen for longest.

    Serve's own router compares two random replicas by queue lengths that they reported earlier. It distributes the windows of a
    file unevenly, and the file waits for the replica with the most.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Called by Serve after the constructor."""
        self._outstanding = Counter[ReplicaID]()
        self._choices = itertools.count(1)
        self._last_choice: dict[ReplicaID, int] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, best first, each a rank of its own: when Serve cannot reach one, it tries the next."""
        if pending_request is not None:
            # Serve waits before it asks again when none could be reached.
            pending_request.routing_context.should_backoff = True
        ranked = sorted(candidate_replicas, key=self._rank)
        if ranked:
            self._last_choice[ranked[0].replica_id] = next(self._choices)
        return [[replica] for replica in ranked]

    def _rank(self, replica: RunningReplica) -> tuple[int, float]:
        # In random order at first, so that ingress processes do not all begin with the same one.
        replica_id = replica.replica_id
        return self._outstanding[replica_id], self._last_choice.get(replica_id, -random.random())

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A window is sent."""
        super().on_send_request(replica_id)
        self._outstanding[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A window was answered, failed or was cancelled."""
        self._outstanding[replica_id] = max(0, self._outstanding[replica_id] - 1)
