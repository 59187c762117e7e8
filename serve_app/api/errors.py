"""The one place where failures become HTTP: OpenAI's error object, whatever went wrong and wherever."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.api.schemas import ErrorBody, ErrorObject
from serve_app.errors import UNFORESEEN, RequestError, SpeechError, StorageFull, UploadTooLarge

log = logging.getLogger("ray.serve")

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request cannot be honoured as it stands: a field is missing or wrong, or the file is not audio.",
        401: "An API key is needed, and none or a wrong one was given.",
        404: "No such model.",
        408: "The upload paused too long, or did not end in time.",
        413: "The upload is larger, or its audio longer, than the server accepts.",
        429: "The server, or the key, has as many requests as it may have; `Retry-After` says when to try again.",
        500: "Recognition failed.",
        503: "The model cannot be had now; the message says why, `Retry-After` when to try again.",
        504: "The answer did not come in time.",
    }.items()
}


def install(api: FastAPI, max_upload_bytes: int) -> None:
    """Answer every failure of this application with OpenAI's error object."""

    @api.exception_handler(SpeechError)
    async def speech_error(request: Request, error: SpeechError) -> JSONResponse:
        if error.status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, error.message)
        return answer(error)

    @api.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # FastAPI gives the place as ("body", field, index, ...).
        param = str(first["loc"][1]) if len(first["loc"]) > 1 else None
        if first["type"] == "missing":
            return _body(400, f"The field `{param}` is required.", "missing_required_parameter", param)
        return _body(400, f"The field `{param}` is wrong: {first['msg']}.", "invalid_value", param)

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, SpeechError):
            return answer(error.__cause__)
        if isinstance(error.__cause__, OSError):
            log.error("an upload could not be stored: %s", error.__cause__)
            return answer(StorageFull())
        if error.status_code == UploadTooLarge.status:
            return answer(UploadTooLarge.over(max_upload_bytes))
        message = f"Unknown route: {request.url.path}" if error.status_code == 404 else str(error.detail)
        code = RequestError.code if error.status_code < 500 else SpeechError.code
        response = _body(error.status_code, message, code)
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return _body(500, UNFORESEEN, SpeechError.code)


def answer(error: SpeechError) -> JSONResponse:
    """The HTTP response to a failure."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(describe(error).model_dump(), error.status, headers)


def describe(error: SpeechError) -> ErrorBody:
    """OpenAI's error object for a failure."""
    return _object(error.status, error.message, error.code, error.param)


def _body(status: int, message: str, code: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(_object(status, message, code, param).model_dump(), status)


def _object(status: int, message: str, code: str, param: str | None) -> ErrorBody:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return ErrorBody(error=ErrorObject(message=message, type=kind, param=param, code=code))
