"""The HTTP and WebSocket API of one service: routes, wire schemas, error responses. Imports FastAPI, never Ray."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from serve_app import __version__
from serve_app.api import auth, disconnects, errors, exports, limits, openapi, realtime, rest, web_page, websocket
from serve_app.service import SpeechService

DESCRIPTION = "Speech to text with NVIDIA Parakeet models. The routes under `/v1` are compatible with OpenAI's audio API."


def create_api(service: SpeechService) -> FastAPI:
    """The FastAPI application of one service."""
    api = FastAPI(title="Parakeet on Ray Serve", version=__version__, description=DESCRIPTION)
    request_limits = service.settings.limits
    errors.install(api, request_limits.max_upload_bytes)
    api.add_middleware(disconnects.StopWhenGone)
    api.add_middleware(limits.RequestLimits, limits=request_limits, admission=service.admission)
    keys = auth.Keys(service.settings.auth)
    api.add_middleware(auth.RequireKey, keys=keys)
    api.add_middleware(
        CORSMiddleware,
        allow_origins=service.settings.ingress.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
    api.include_router(rest.create_router(service))
    api.include_router(exports.create_router(service))
    api.include_router(websocket.create_router(service, keys))
    api.include_router(realtime.create_router(service, keys))
    web_page.install(api)
    openapi.install(api)
    return api
