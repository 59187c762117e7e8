"""How Serve's router in an ingress chooses the replica of a model that gets a call."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from ray.serve._private.common import RequestMetadata
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.cluster.shared_audio import SentAudio
from serve_app.window import SAMPLE_RATE, Samples

CALL_SAMPLES = SAMPLE_RATE
"""What a call counts besides its audio, samples."""

MAX_PROGRESS_S = 1.0
"""A replica is taken to have worked on its calls since the last one of them was answered, but for no longer than this, seconds:
about a batch. A replica that hangs must not look as if it were done soon."""

MAX_PROGRESS = 0.5
"""Maximum share of its audio that a replica is taken to have done: of two batches, one runs and one waits."""

RATE_HALF_LIFE_S = 30.0
"""Time of replicas with calls after which a call weighs half in their rate, seconds. A cancelled call counts as an answered one:
Serve does not tell. MAX_PROGRESS bounds what that does."""


class LeastOutstandingRouter(FIFOMixin, RequestRouter):
    """Chooses the replica that has the least audio of this ingress left; among equals, the one that was not chosen for longest.

    Serve's own router compares two random replicas by queue lengths that they reported earlier. It distributes the windows of a
    file unevenly, and the file waits for the replica with the most.
    """

    def __init__(self, *args: Any, self_node_id: str | None = None, **options: Any) -> None:
        """`self_node_id`: the node of this ingress."""
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self._node_id = self_node_id

    def initialize_state(self, *, drain_s: float = 0.0, **_: object) -> None:  # Serve calls it after the constructor
        """`drain_s`: time that a replica which is being stopped has for its calls, seconds. Those left after it fail."""
        self._drain_s = drain_s
        self._calls: dict[str, tuple[ReplicaID, int]] = {}
        """Replica and samples of every call, from the choice of its replica on, by Serve's id of the call."""
        self._outstanding = Counter[ReplicaID]()
        """Samples of those calls by replica."""
        self._since_s: dict[ReplicaID, float] = {}
        """When the last call of each was answered, or the first one sent; seconds of the monotonic clock."""
        self._answered = self._busy_s = 0.0
        """Samples that were answered, and the time that replicas had calls. Earlier ones weigh less."""
        self._choices = itertools.count(1)
        self._last_choice: dict[ReplicaID, int] = {}
        self._closing = set[asyncio.Task[None]]()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, best first, each a rank of its own: when Serve cannot reach one, it tries the next."""
        if pending_request is not None:
            # Serve waits before it asks again when none could be reached.
            pending_request.routing_context.should_backoff = True
            self._forget(pending_request.metadata.internal_request_id)
        ranked = sorted(candidate_replicas, key=lambda replica: self._rank(replica.replica_id))
        if ranked:
            best = ranked[0].replica_id
            self._last_choice[best] = next(self._choices)
            if pending_request is not None:
                self._count(pending_request, best)
        return [[replica] for replica in ranked]

    def _rank(self, replica_id: ReplicaID) -> tuple[float, float]:
        """Sort key: samples left (outstanding minus estimated progress), age."""
        if not (outstanding := self._outstanding[replica_id]):
            return 0, self._age(replica_id)
        progress_s = min(time.monotonic() - self._since_s[replica_id], MAX_PROGRESS_S)
        done = min(progress_s * self._answered / max(self._busy_s, 0.001), MAX_PROGRESS * outstanding)
        return outstanding - done, self._age(replica_id)

    def _age(self, replica_id: ReplicaID) -> float:
        # In random order at first, so that ingress processes do not all begin with the same one.
        return self._last_choice.get(replica_id, -random.random())

    def _count(self, call: PendingRequest, replica_id: ReplicaID) -> None:
        samples = CALL_SAMPLES + sum(map(len, _audio(call.args)))
        self._calls[call.metadata.internal_request_id] = replica_id, samples
        if not self._outstanding[replica_id]:
            self._since_s[replica_id] = time.monotonic()
        self._outstanding[replica_id] += samples

    def _forget(self, call_id: str) -> None:
        if (call := self._calls.pop(call_id, None)) is not None:
            replica_id, samples = call
            self._outstanding[replica_id] -= samples
            if not self._outstanding[replica_id]:
                # Otherwise replicas that are gone would stay.
                del self._outstanding[replica_id], self._since_s[replica_id]

    async def _choose_replica_for_request(self, pending_request: PendingRequest, *, is_retry: bool = False) -> RunningReplica:
        """The replica that a call is sent to. Once it is known, Serve reports the end of the call; until then nothing does."""
        try:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except BaseException:
            self._forget(pending_request.metadata.internal_request_id)
            raise
        for audio in _audio(pending_request.args):
            if isinstance(audio, SentAudio):
                audio.is_near = self._node_id is not None and replica.node_id == self._node_id
        return replica

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: RequestMetadata | None = None) -> None:
        """Give a replica to the next call. Ray 2.60 fails here where that call is cancelled in this moment."""
        with suppress(asyncio.InvalidStateError):
            super()._fulfill_next_pending_request(replica, request_metadata)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call was answered, failed or was cancelled."""
        if (call := self._calls.get(internal_request_id)) is not None and call[0] == replica_id:
            now_s = time.monotonic()
            elapsed_s = now_s - self._since_s[replica_id]
            weight = 0.5 ** (elapsed_s / RATE_HALF_LIFE_S)
            self._answered = weight * self._answered + call[1]
            self._busy_s = weight * self._busy_s + elapsed_s
            self._since_s[replica_id] = now_s
        self._forget(internal_request_id)

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
        if replica._channel is not None:
            task = asyncio.get_running_loop().create_task(replica._channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _audio(argument: object) -> Iterator[Samples | SentAudio]:
    """The audio in the arguments of a call."""
    if isinstance(argument, np.ndarray | SentAudio):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _audio(part)
