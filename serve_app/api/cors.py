"""Cross-origin requests: which web pages may use this server."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

LOCAL_NETWORK = "Access-Control-Request-Local-Network", "Access-Control-Allow-Local-Network"
"""Headers of a preflight, in which a browser asks whether a public page may use a server of the local network, and the answer.

They are the newer names of those with `Private`, which Starlette knows.
"""


class Cors(CORSMiddleware):
    """ASGI middleware: pages of `origins` (`*`: all) may send every request and read every response."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        everything = ["*"]
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=everything,
            allow_headers=everything,
            expose_headers=everything,
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        request_header, response_header = LOCAL_NETWORK
        if request_header in request_headers and response.status_code == 200:
            response.headers[response_header] = "true"
        return response
