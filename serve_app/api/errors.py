"""The one place where failures become HTTP responses: every one has OpenAI's error object as its body."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve_app.api.addresses import intended_path
from serve_app.api.schemas import ErrorBody, ErrorObject
from serve_app.errors import UNFORESEEN, IngressLost, RequestError, SpeechError, StorageFull, Unserved

log = logging.getLogger("ray.serve")

FAILURE_COUNTER = "parakeet.count_failure"
"""Key in the ASGI scope of a function that counts a failure by its code."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request is invalid: a field is missing or wrong, or the file is not audio.",
        401: "The API key is missing or wrong.",
        404: "No such model.",
        408: "The upload paused for too long, was too slow, or did not end in time.",
        413: "The upload is too large, or its audio too long.",
        429: "The server, or the key, has reached its limit of requests; `Retry-After` says when to try again.",
        500: "Recognition failed.",
        503: "The model is unavailable; the message says why, `Retry-After` when to try again.",
        504: "The response was not ready in time.",
    }.items()
}
"""OpenAPI responses of a route that transcribes, by status."""


def install(api: FastAPI) -> None:
    """Answer every failure of this application with OpenAI's error object."""

    @api.exception_handler(SpeechError)
    async def speech_error(request: Request, error: SpeechError) -> JSONResponse:
        if error.status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, error.message)
        return _counted(request, error_response(error), error.code)

    @api.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # FastAPI's location is ("body", field, index, ...); ("body",) or ("body", position) where the body is not JSON.
        field = first["loc"][1] if len(first["loc"]) > 1 else None
        param = field if isinstance(field, str) else None
        subject = f"The field `{param}`" if param else "The body"
        if first["type"] == "missing":
            message, code = f"{subject} is required.", "missing_required_parameter"
        else:
            message, code = f"{subject} is wrong: {first['msg']}.", "invalid_value"
        return _counted(request, _response(400, message, code, param), code)

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        cause = error.__cause__
        if isinstance(cause, OSError):
            log.error("an upload could not be stored: %s", cause)
            cause = StorageFull()
        if isinstance(cause, SpeechError):
            return _counted(request, error_response(cause), cause.code)
        message = _unknown_route(request) if error.status_code == 404 else str(error.detail)
        code = RequestError.code if error.status_code < 500 else SpeechError.code
        response = _response(error.status_code, message, code)
        response.headers.update(error.headers or {})
        return _counted(request, response, code)

    # Counted where the exception has passed through.
    @api.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return _response(500, UNFORESEEN, SpeechError.code)


def _unknown_route(request: Request) -> str:
    path, scope = request.url.path, request.scope
    intended = intended_path(path, request.app.openapi()["paths"])
    if intended is None:
        return f"Unknown route: {path}"
    prefix = scope.get("app_root_path", scope.get("root_path", ""))
    base = f" The base address of OpenAI's clients ends with {prefix}/v1." if intended.startswith("/v1/") else ""
    return f"Unknown route: {path}. Did you mean {prefix}{intended}?{base}"


def count_failure(scope: Scope, code: str) -> None:
    """Count a failure that becomes an answer to the request, or on the connection, of this scope."""
    if (count := scope.get(FAILURE_COUNTER)) is not None:
        count(code)


def _counted(request: Request, response: JSONResponse, code: str) -> JSONResponse:
    count_failure(request.scope, code)
    return response


async def send_error(error: SpeechError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a failure."""
    count_failure(scope, error.code)
    await error_response(error)(scope, receive, send)


def error_response(error: SpeechError) -> JSONResponse:
    """The HTTP response to a failure."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error).model_dump(), error.status, headers)


def proxy_responses() -> tuple[JSONResponse, JSONResponse]:
    """What Serve's proxies answer where the ingress is lost, and while no application is deployed."""
    return error_response(IngressLost()), error_response(Unserved())


def error_body(error: SpeechError) -> ErrorBody:
    """OpenAI's error object for a failure."""
    return _body(error.status, error.message, error.code, error.param)


def _response(status: int, message: str, code: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(_body(status, message, code, param).model_dump(), status)


def _body(status: int, message: str, code: str, param: str | None) -> ErrorBody:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return ErrorBody(error=ErrorObject(message=message, type=kind, param=param, code=code))
