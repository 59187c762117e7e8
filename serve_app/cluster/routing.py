"""How Serve's router in an ingress chooses the replica of a model that gets a call."""

import asyncio
import itertools
import random
from collections import Counter
from functools import partial

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica


class LeastOutstandingRouter(FIFOMixin, RequestRouter):
    """Chooses the replica that has the fewest calls of this ingress; among equals, the one that was not chosen for longest.

    Serve's own router compares two random replicas by queue lengths that they reported earlier. It distributes the windows of a
    file unevenly, and the file waits for the replica with the most.
    """

    def initialize_state(self, *, drain_s: float = 0.0, **_: object) -> None:  # Serve calls it after the constructor
        """`drain_s`: time that a replica which is being stopped has for its calls, seconds. Those left after it fail."""
        self._drain_s = drain_s
        self._outstanding = Counter[ReplicaID]()
        self._choices = itertools.count(1)
        self._last_choice: dict[ReplicaID, int] = {}
        self._chosen: dict[asyncio.Future[RunningReplica], ReplicaID] = {}
        """By call, until it is sent or cancelled."""
        self._closing = set[asyncio.Task[None]]()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, best first, each a rank of its own: when Serve cannot reach one, it tries the next."""
        load = self._outstanding + Counter(self._chosen.values())
        ranked = sorted(candidate_replicas, key=lambda replica: (load[replica.replica_id], self._age(replica.replica_id)))
        if ranked:
            self._last_choice[ranked[0].replica_id] = next(self._choices)
        if pending_request is not None:
            # Serve waits before it asks again when none could be reached.
            pending_request.routing_context.should_backoff = True
            # Several calls may be routed before the first of them is sent.
            if ranked:
                call = pending_request.future
                if call not in self._chosen:
                    call.add_done_callback(lambda call: self._chosen.pop(call, None))
                self._chosen[call] = ranked[0].replica_id
        return [[replica] for replica in ranked]

    def _age(self, replica_id: ReplicaID) -> float:
        # In random order at first, so that ingress processes do not all begin with the same one.
        return self._last_choice.get(replica_id, -random.random())

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A call is sent."""
        super().on_send_request(replica_id)
        self._outstanding[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call was answered, failed or was cancelled."""
        self._outstanding[replica_id] = max(0, self._outstanding[replica_id] - 1)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve has added or removed replicas.

        A connection to a node that lost its power stays open for minutes. So the connections to removed replicas are closed once
        they have had their time, which fails the calls that are left.
        """
        kept = {replica.replica_id for replica in replicas}
        for replica_id, replica in self.curr_replicas.items():
            if replica_id not in kept:
                self._last_choice.pop(replica_id, None)
                asyncio.get_running_loop().call_later(self._drain_s, partial(self._close, replica))
        super().update_replicas(replicas)

    def _close(self, replica: RunningReplica) -> None:
        self._outstanding.pop(replica.replica_id, None)
        if replica._channel is not None:
            task = asyncio.get_running_loop().create_task(replica._channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
