"""The HTTP and WebSocket API of one service: routes, wire schemas, error responses. Imports FastAPI, never Ray."""

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import Route, WebSocketRoute

from serve_app import __version__
from serve_app.api import (
    addresses,
    auth,
    cors,
    disconnects,
    errors,
    exports,
    jobs,
    limits,
    metrics,
    openapi,
    realtime,
    rest,
    traces,
    web_page,
    websocket,
)
from serve_app.jobs.service import JobService
from serve_app.service import SpeechService

DESCRIPTION = "Speech to text with NVIDIA Parakeet models. The routes under `/v1` are compatible with OpenAI's audio API."

VIEWER_PATH = f"{web_page.PATH}/docs"
"""Where the files of the viewers at `/docs` and `/redoc` are. FastAPI's own pages load them from a public content network."""


def create_api(
    service: SpeechService, scrape: metrics.Scrape = metrics.no_exporter, job_service: JobService | None = None
) -> FastAPI:
    """The FastAPI application of one service. `scrape` returns what `/metrics` answers. Without `job_service` there are no
    jobs."""
    api = FastAPIOffline(
        title="Parakeet on Ray Serve",
        version=__version__,
        description=DESCRIPTION,
        redirect_slashes=False,
        static_url=VIEWER_PATH,
    )
    errors.install(api)
    api.add_middleware(disconnects.StopWhenGone)
    api.add_middleware(
        limits.RequestLimits,
        limits=service.settings.limits,
        admission=service.admission,
        trusted_proxies=service.settings.ingress.trusted_proxies,
    )
    keys = auth.Keys(service.settings.auth)
    routers = [
        rest.create_router(service, keys),
        exports.create_router(service),
        websocket.create_router(service, keys),
        realtime.create_router(service, keys),
        metrics.create_router(scrape),
    ]
    if job_service is not None:
        routers.append(jobs.create_router(service, job_service))
    paths = {route.path for router in routers for route in router.routes if isinstance(route, Route | WebSocketRoute)}
    api.add_middleware(auth.RequireKey, keys=keys)
    routes = metrics.Routes(paths | auth.PUBLIC_PATHS, folders=[web_page.PATH])
    api.add_middleware(metrics.RequestMetrics, recorder=service.recorder, routes=routes)
    if service.tracer is not None:
        api.add_middleware(traces.RequestTraces, tracer=service.tracer, routes=routes)
    api.add_middleware(disconnects.DisconnectWhenLost)
    api.add_middleware(addresses.Addresses)
    api.add_middleware(cors.Cors, origins=service.settings.ingress.cors_origins)
    for router in routers:
        api.include_router(router)
    web_page.install(api)
    openapi.install(api)
    return api
