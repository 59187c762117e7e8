"""What replicas of every kind have in common: loading with a status, the reports to the registry, the exit on a broken device."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar, TypeVar

import ray
from ray import serve

from serve_app.cluster.calls import LOAD_FAILED, DeploymentHandle
from serve_app.cluster.demand import Demand
from serve_app.cluster.status import HEARTBEAT_S, ModelState, ReplicaStatus
from serve_app.engine.model_files import DownloadProgress
from serve_app.errors import EngineBroken, ModelUnavailable, SpeechError
from serve_app.observe import catalogue, serve_log
from serve_app.observe.ray_recorder import RayRecorder
from serve_app.observe.recorder import NO_RECORDER, Recorder
from serve_app.settings import Device, LogFormat

log = logging.getLogger("ray.serve")

LOAD_RETRY_S = 3.0
"""Requests within this time of a failed load get its error, seconds; a later request tries to load again."""

EXIT_GRACE_S = 0.5
"""Time before a replica with a broken engine exits, seconds, so that its error replies are sent."""

Result = TypeVar("Result")


class Replica:
    """One loaded copy. Its engine is loaded and used on a single thread, which owns it."""

    KIND: ClassVar[str]
    """What it is a replica of, for people."""
    PARAM: ClassVar[str]
    """The field of a request that asks for it."""

    _recorder: Recorder = NO_RECORDER
    _demand: Demand | None = None
    """What the status registry answered; None while it does not."""

    async def _begin(self, status_registry: DeploymentHandle, log_format: LogFormat) -> None:
        """Load, and report from here on. Part of the constructor.

        Serve sends requests only once the constructor has returned, so a replica that is added under load takes work when it is
        loaded. A failed load must not fail the constructor: Serve would retry it blindly and no client would get the reason.
        """
        log.addFilter(serve_log.without_traceback)
        serve_log.apply(log_format)
        self._recorder = RayRecorder()
        self._status_registry = status_registry
        self._engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._status = ReplicaStatus(replica_id=serve.get_replica_context().replica_id.unique_id, state="starting")
        self._broken: EngineBroken | None = None
        """Why this process is about to exit."""
        self._failed_at_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._status_changed = asyncio.Event()
        self._reporting = asyncio.create_task(self._report())
        self._loading: asyncio.Task[None] = asyncio.create_task(self._load())
        await asyncio.wait([self._loading])

    @property
    def _name(self) -> str:
        """As the settings say."""
        raise NotImplementedError

    @property
    def _is_loaded(self) -> bool:
        raise NotImplementedError

    async def _open(self) -> ReplicaStatus:
        """Load the engine; returns the status with what is known of it."""
        raise NotImplementedError

    def _status_now(self) -> ReplicaStatus:
        """The status with what changes while the replica works."""
        return self._status

    async def _require_loaded(self) -> None:
        """Wait until it is loaded. Raises ModelUnavailable."""
        if self._loading.done() and not self._is_loaded and time.monotonic() - self._failed_at_s > LOAD_RETRY_S:
            self._loading = asyncio.create_task(self._load())
        # Shielded: a client that disconnects must not cancel a load that others wait for.
        await asyncio.shield(self._loading)
        if not self._is_loaded:
            # The reason names paths and addresses of this machine, so it is for the log and for /ready.
            raise ModelUnavailable(f"The {self.KIND} `{self._name}` is unavailable: {LOAD_FAILED}.", param=self.PARAM)

    async def _load(self) -> None:
        began_s = time.monotonic()
        self._set_state("starting")
        try:
            self._status = await self._open()
        except Exception as error:
            if isinstance(error, EngineBroken):
                self._exit(error)
            self._failed_at_s = time.monotonic()
            is_foreseen = isinstance(error, SpeechError)
            reason = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
            log.error("%s %s could not be loaded: %s", self.KIND, self._name, reason, exc_info=not is_foreseen)
            self._set_state("failed", reason)
            return
        self._recorder.record(catalogue.MODEL_LOAD_SECONDS, time.monotonic() - began_s, self._name)
        self._set_state("ready")

    async def _guarded(
        self, timeout_s: float, thread: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object
    ) -> Result:
        """The result of work of the engine. If that takes longer than `timeout_s` or is broken, this process exits."""
        if self._broken is not None:
            raise self._broken
        running = self._loop.run_in_executor(thread, work, *arguments)
        try:
            async with asyncio.timeout(timeout_s):
                return await running
        except TimeoutError:
            hung = EngineBroken(f"A batch did not end within {timeout_s:.0f} s.")
            self._exit(hung)
            raise hung from None
        except EngineBroken as error:
            self._exit(error)
            raise

    def _exit(self, error: EngineBroken) -> None:
        """End this process. What it gets until then fails with `error`, so it is sent to another replica.

        Serve replaces a dead replica at once, but an unhealthy one only after half a minute, in which it would attract requests
        by failing them fast.
        """
        self._broken = error
        log.error("%s %s: %s; this replica exits", self.KIND, self._name, error.message)
        self._loop.call_later(EXIT_GRACE_S, os._exit, 1)

    def _note_download(self, progress: DownloadProgress) -> None:
        done_mb = progress.done_bytes / 1e6
        total = "" if progress.total_bytes is None else f" of {progress.total_bytes / 1e6:.0f}"
        self._set_state("downloading", f"downloaded {done_mb:.0f}{total} MB")
        log.info("%s %s: %s", self.KIND, self._name, self._status.detail)

    def _set_state(self, state: ModelState, detail: str = "") -> None:
        """Called from the event loop and from the engine thread."""
        self._status = replace(self._status, state=state, detail=detail)
        self._loop.call_soon_threadsafe(self._status_changed.set)

    async def _report(self) -> None:
        """Report the status to the registry whenever it changes, and every HEARTBEAT_S."""
        while True:
            try:
                self._demand = await self._status_registry.report_model.remote(self._name, self._status_now())
            except Exception as error:
                self._demand = None
                log.warning("the status registry is unreachable: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._status_changed.wait()
            self._status_changed.clear()


def device_of(wanted: Device) -> Device:
    """The device of a replica, `cpu` or `cuda`. Ray hides no GPU from a replica that reserves none."""
    return wanted if wanted != "auto" else "cuda" if ray.get_gpu_ids() else "cpu"
