"""The ingress deployment: one process per replica that speaks HTTP and hands windows to the models."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from fastapi import FastAPI
from ray import serve

from serve_app import backpressure
from serve_app.api import create_api
from serve_app.board import HEARTBEAT_S, News
from serve_app.deployments import DeploymentHandle, ModelClient
from serve_app.service import ReplicaStatus, SpeechService
from serve_app.settings import Settings
from serve_app.vad import SpeechDetector

log = logging.getLogger("ray.serve")


@serve.ingress()
class Ingress:
    """Builds the service of this process; the routes are in `api/`."""

    def __init__(self, settings: Settings, board: DeploymentHandle, models: dict[str, DeploymentHandle]) -> None:
        self._board = board
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._heard: Mapping[str, tuple[ReplicaStatus, ...]] = {}
        clients = {m.name: ModelClient(m, settings, models[m.name], partial(self._last_heard, m.name)) for m in settings.models}
        self._service = SpeechService(settings, clients, self._statuses, SpeechDetector().follow)
        backpressure.bound_this_replica()
        loop = asyncio.get_running_loop()
        # Kept: a loop holds its tasks only weakly.
        self._tasks = [loop.create_task(self._listen()), loop.create_task(backpressure.bound_proxies())]

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service)

    def _last_heard(self, model: str) -> tuple[ReplicaStatus, ...]:
        return self._heard.get(model, ())

    async def _statuses(self) -> Mapping[str, tuple[ReplicaStatus, ...]]:
        admission = self._service.admission
        is_done = admission.is_closed and admission.requests == admission.streams == 0
        news: News = await self._board.report_ingress.remote(self._replica_id, is_done=is_done)
        if news.is_draining:
            admission.close()
        self._heard = news.models
        return self._heard

    async def _listen(self) -> None:
        while True:
            try:
                await self._statuses()
            except Exception as error:
                log.warning("the board cannot be reached: %s", error)
            await asyncio.sleep(HEARTBEAT_S)
