"""Calls of an ingress to the replicas of a deployment: which failures are worth another try, and what a client learns of them."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle as _DeploymentHandle

from serve_app.cluster.status import ReplicaStatus
from serve_app.errors import (
    UNFORESEEN,
    DiarizerChanged,
    EngineBroken,
    EngineError,
    EngineOutOfMemory,
    ModelUnavailable,
    SpeechError,
)
from serve_app.observe import serve_log

log = logging.getLogger("ray.serve")

MAX_ATTEMPTS = 4
"""A call whose replicas are lost is sent at most this many times."""

RETRY_DELAY_S = 0.5
"""Delay before the second attempt, seconds; doubled before each further one."""

REPLICA_LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
    ObjectLostError,
    DeploymentUnavailableError,
    AioRpcError,
    EngineBroken,
)
"""The replica or its node is lost, or its engine is broken: the call is sent again. OutOfMemoryError is not CUDA's but Ray's,
for a process that it killed. A connection that breaks is most often a RayActorError, else an AioRpcError."""

LOST_CODES = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.INTERNAL)
"""Status codes of an AioRpcError that a lost connection has."""

CHECK_S = 0.5
"""How often a call that waits checks whether its deployment is still there, seconds."""

MAX_BY_VALUE_BYTES = 4_000_000
"""Maximum audio of a call that is sent by value, bytes (125 s). A message of Serve's may have 4 MiB."""

LOAD_FAILED = "it could not be loaded; `/ready` and the server's log say why"
"""What a client is told of a model that is not there."""

DeploymentHandle: TypeAlias = _DeploymentHandle[Any]
Result = TypeVar("Result")


def by_value(replicas: DeploymentHandle) -> DeploymentHandle:
    """A handle whose calls go straight to the replica, by gRPC, and not through Ray's tasks and object store."""
    return replicas.options(_by_reference=False, request_serialization="pickle", response_serialization="pickle")


async def retried(call: Callable[[int], Awaitable[Result]], what: str) -> Result:
    """The result of `call`, which gets the number of the attempt, from 0. Raises SpeechError.

    It is called again when its replica is lost, and once when it fails. `what`: for the log.
    """
    has_failed = False
    for attempt in range(MAX_ATTEMPTS):
        try:
            return await call(attempt)
        except REPLICA_LOST as error:
            log.warning("%s was lost with its replica (%s)", what, type(error).__name__)
        except EngineError as error:
            # A replica that fails at everything ends after a few calls. The second attempt comes after that.
            if has_failed or isinstance(error, EngineOutOfMemory | DiarizerChanged):
                raise
            has_failed = True
        if attempt < MAX_ATTEMPTS - 1:
            # Serve's router needs a moment to notice that the replica is gone.
            await asyncio.sleep(RETRY_DELAY_S * 2**attempt)
    raise EngineBroken("The replicas that it needs failed one after the other; try again later.")


async def waited(
    call: Callable[[], Coroutine[Any, Any, Result]],
    *,
    load_s: float,
    what: str,
    param: str,
    statuses: Callable[[], Sequence[ReplicaStatus]],
    is_deployed: Callable[[], Awaitable[bool]],
    is_to_be_moved: Callable[[], bool] = lambda: False,
) -> Result:
    """The result of `call`. Every CHECK_S it is checked whether there is still something to wait for.

    Raises ModelUnavailable where no replica is loaded after `load_s` seconds, or the deployment is no part of the running
    application any more. `what` and `param`: see `require_loaded`. `statuses`: the last known ones of the replicas.
    `is_to_be_moved` is asked at each check: the call is cancelled and made again.
    """

    async def require_deployed() -> None:
        if not await is_deployed():
            raise ModelUnavailable(f"The {what} was removed from the server.", param=param) from None

    def begin() -> asyncio.Task[Result]:
        return serve_log.own_context().run(lambda: asyncio.create_task(call()))

    calling = begin()
    now_s = asyncio.get_running_loop().time
    loaded_by_s = now_s() + load_s
    try:
        while not (await asyncio.wait([calling], timeout=max(0.0, min(CHECK_S, loaded_by_s - now_s()))))[0]:
            if now_s() >= loaded_by_s:
                require_loaded(statuses(), what, param)
                loaded_by_s = math.inf
            # If the deployment is deleted, Serve's router keeps waiting for a replica of it, without a timeout.
            await require_deployed()
            if is_to_be_moved():
                calling.cancel()
                calling = begin()
        try:
            return calling.result()
        except DeploymentUnavailableError:
            await require_deployed()
            raise
    finally:
        calling.cancel()


async def answer(response: Any, name: str) -> Any:
    """The answer to a call of the model `name`. Raises one of REPLICA_LOST or another SpeechError."""
    try:
        return await response
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and not task.cancelling():
            raise EngineBroken("The replica stopped before it was done.") from None
        # Cancelling the wait alone would leave the call in the replica's queue.
        with contextlib.suppress(Exception):  # It has failed by now.
            response.cancel()
        raise
    except Exception as error:
        raise _as_ours(error, name) from None


def _as_ours(error: BaseException, name: str) -> BaseException:
    """What a client of the server may know of a failure in a replica."""
    cause: BaseException = error.cause if isinstance(error, RayTaskError) else error
    is_lost = isinstance(cause, REPLICA_LOST) and not (isinstance(cause, AioRpcError) and cause.code() not in LOST_CODES)
    if is_lost or isinstance(cause, SpeechError):
        return cause
    log.error("a call of %s failed: %r", name, cause)
    return EngineError(UNFORESEEN)


def require_loaded(replicas: Sequence[ReplicaStatus], what: str, param: str) -> None:
    """Raises ModelUnavailable, with the load progress or the reason, unless a replica is ready. `what`: such as "model `x`"."""
    if any(replica.state == "ready" for replica in replicas):
        return
    if replicas and all(replica.state == "failed" for replica in replicas):
        reason = LOAD_FAILED
    else:
        waiting_for = "it is still being loaded" if replicas else "waiting for a free CPU or GPU"
        reason = next((replica.detail for replica in replicas if replica.detail and replica.state != "failed"), waiting_for)
    raise ModelUnavailable(f"The {what} is not loaded yet ({reason}). Try again later.", param=param)
