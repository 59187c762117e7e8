"""The ingress deployment: HTTP and WebSocket, the decoder processes, and the clients of the models. The routes are in `api/`."""

import asyncio
import builtins
import logging
from collections.abc import Mapping
from functools import partial

from fastapi import FastAPI
from ray import serve
from ray.serve._private import logging_utils

from serve_app.api import create_api
from serve_app.api.errors import proxy_responses
from serve_app.cluster import backpressure, proxies
from serve_app.cluster.calls import DeploymentHandle, by_value
from serve_app.cluster.diarizer_client import DiarizerClient
from serve_app.cluster.model_client import ModelClient
from serve_app.cluster.running_application import RunningApplication
from serve_app.cluster.shared_audio import SharedAudio
from serve_app.cluster.status import HEARTBEAT_S, ClusterStatus, ReplicaStatus
from serve_app.cores import usable_cores
from serve_app.decoders.pool import DecoderPool
from serve_app.jobs.service import JobService
from serve_app.live.vad import SileroModel
from serve_app.observe import serve_log, tracers
from serve_app.observe.ingress_state import IngressState
from serve_app.observe.node_exporter import NodeExporter
from serve_app.observe.ray_recorder import RayRecorder
from serve_app.observe.tracing import Tracer
from serve_app.service import SpeechService
from serve_app.settings import Settings
from serve_app.tasks import stop

log = logging.getLogger("ray.serve")

MAX_DECODERS = 32
"""Number of decoder processes of an ingress by default. More decode faster than one ingress can pass on."""

REPLY_TIMEOUT_S = 2.0
"""The status registry must reply within this time, seconds."""

CHECK_S = 0.3
"""A registry that has not replied within this time, seconds, may have been removed together with the application."""


@serve.ingress()
class Ingress:
    """One process. It builds the service, and reports to the status registry by heartbeat."""

    _tracer: Tracer | None = None
    _working: asyncio.Task[None] | None = None
    _jobs: JobService | None = None

    def __init__(
        self,
        settings: Settings,
        status_registry: DeploymentHandle,
        models: dict[str, DeploymentHandle],
        diarizers: dict[str, DeploymentHandle],
        replicas_per_node: int,
        configuration: str,
    ) -> None:
        restore_print()
        serve_log.apply(settings.log_format)
        self._status_registry = status_registry
        context = serve.get_replica_context()
        self._replica_id = context.replica_id.unique_id
        self._configuration = configuration
        self._application = RunningApplication(context.app_name)
        self._models: Mapping[str, tuple[ReplicaStatus, ...]] = {}
        recorder = RayRecorder()
        self._tracer = tracers.open_tracer(settings.tracing, context.deployment, self._replica_id)
        audio = SharedAudio()
        clients = {
            model.name: ModelClient(
                model,
                settings,
                by_value(models[model.name]),
                partial(self._last_statuses, model.name),
                partial(self._application.includes, models[model.name].deployment_name),
                recorder,
                audio,
            )
            for model in settings.models
        }
        diarizer_clients = {
            name: DiarizerClient(
                name,
                settings.limits.model_wait_s,
                by_value(replicas),
                partial(self._last_statuses, name),
                partial(self._application.includes, replicas.deployment_name),
                recorder,
            )
            for name, replicas in diarizers.items()
        }
        cores = usable_cores() // replicas_per_node
        decoders = DecoderPool(settings.decoding.processes or min(max(1, cores), MAX_DECODERS), audio.new_samples)
        vad = SileroModel()
        # Before the first health check: later, loading would delay whatever the process does meanwhile.
        vad.load()
        self._service = SpeechService(
            settings, clients, self._statuses, vad.detector, decoders, recorder, self._tracer, diarizers=diarizer_clients
        )
        backpressure.bound_this_replica()
        self._jobs = None if settings.jobs.directory is None else JobService.of(self._service)
        loop = asyncio.get_running_loop()
        # Kept, as a loop holds its tasks only weakly.
        self._tasks = [loop.create_task(self._report()), loop.create_task(proxies.patch_proxies(*proxy_responses()))]
        self._working = None if self._jobs is None else loop.create_task(self._jobs.run())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service, NodeExporter().scrape, self._jobs)

    async def __del__(self) -> None:
        """Serve calls it when the replica stops."""
        try:
            await stop(self._working)
        finally:
            if self._tracer is not None:
                self._tracer.close()

    def _last_statuses(self, model: str) -> tuple[ReplicaStatus, ...]:
        return self._models.get(model, ())

    async def _statuses(self) -> Mapping[str, tuple[ReplicaStatus, ...]]:
        """Report this process, and return the replicas that the registry knows, by model name; the last known ones while it does
        not reply."""
        admission = self._service.admission
        is_drained = admission.is_closed and admission.requests == admission.streams.taken == 0
        is_drained &= self._jobs is None or not self._jobs.is_running
        demands = {model.name: self._service.demand.of(model.name) for model in self._service.settings.models}
        response = serve_log.own_context().run(
            self._status_registry.report_ingress.remote, self._replica_id, is_drained=is_drained, demands=demands
        )
        reply: asyncio.Future[ClusterStatus] = asyncio.ensure_future(response)
        try:
            await asyncio.wait([reply], timeout=CHECK_S)
            if not reply.done():
                await self._close_if_removed()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                status = await reply
        except (Exception, asyncio.CancelledError) as error:
            reply.cancel()
            response.cancel()  # type: ignore[no-untyped-call]
            if isinstance(error, asyncio.CancelledError):
                raise
            log.warning("the status registry is unreachable: %r", error)
            await self._close_if_removed()
            return self._models
        if status.is_draining:
            admission.close()
        if self._jobs is not None:
            # Not for good: while Serve replaces both, the new ingress may reach the old registry.
            self._jobs.is_retired = status.configuration != self._configuration
        self._models = status.models
        return self._models

    async def _close_if_removed(self) -> None:
        """Refuse new requests, and end live streams, if the application was removed, its status registry with it."""
        if not await self._application.includes(self._status_registry.deployment_name):
            self._service.admission.close()

    async def _report(self) -> None:
        state = IngressState(self._service)
        while True:
            state.record(*await self._service.statuses())
            await asyncio.sleep(HEARTBEAT_S)


def restore_print() -> None:
    """Undo Serve's replacement of `print` where its log goes to files only (RAY_SERVE_LOG_TO_STDERR=0).

    In Ray 2.60 it prints a tuple in the place of text into files, and pysubs2 prints cues into one.
    """
    builtins.print = logging_utils.buildin_print
