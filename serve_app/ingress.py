"""The ingress deployment: one process per replica that speaks HTTP and hands windows to the models."""

from collections.abc import Mapping

from fastapi import FastAPI
from ray import serve

from serve_app.api import create_api
from serve_app.deployments import DeploymentHandle, ModelClient
from serve_app.service import ReplicaStatus, SpeechService
from serve_app.settings import Settings


@serve.ingress()
class Ingress:
    """Builds the service of this process; the routes are in `api/`."""

    def __init__(self, settings: Settings, board: DeploymentHandle, models: dict[str, DeploymentHandle]) -> None:
        self._board = board
        recognisers = {m.name: ModelClient(m, settings.limits, models[m.name], board).recognise for m in settings.models}
        self._service = SpeechService(settings, recognisers, self._statuses)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service)

    async def _statuses(self) -> Mapping[str, tuple[ReplicaStatus, ...]]:
        statuses: Mapping[str, tuple[ReplicaStatus, ...]] = await self._board.statuses.remote()
        return statuses
