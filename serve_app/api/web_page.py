"""The web page at `/`: static files, with a strict content security policy."""

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PATH = "/static"
"""Below it are all files of the page but the page itself."""

FOLDER = Path(__file__).parent.parent / "static"

HEADERS = {
    # Browsers revalidate with the ETag, and get a 304 if the file has not changed.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def install(api: FastAPI) -> None:
    """Add the routes of the page."""

    files = _Files(directory=FOLDER)

    @api.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    api.mount(PATH, files, name="static")
