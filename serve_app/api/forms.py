"""How the fields of a form arrive: spellings of list fields, files without a filename, forms that end early."""

import re
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

FILE_FIELD = b"file"
"""The field that is a file, with or without a filename."""

LIST_FIELDS = ("include", "keywords", "languages", "timestamp_granularities")
"""Fields that may be repeated. In the API's description, their names end with `[]`."""

LIST_FIELD_SPELLING = re.compile(rf"({'|'.join(LIST_FIELDS)})(\[\d*\])?")
"""`keywords[]`, `keywords` and `keywords[0]` are the same field."""

MAX_FIELD_BYTES = 256 << 10
"""Maximum size of all fields of a form, bytes. They are held in memory until the response."""


class FormRoute(APIRoute):
    """A route that reads its form as a FormRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            return await handle(FormRequest(request.scope, request.receive))

        return handle_form


class FormRequest(Request):
    """A request whose form has every list field under its name with `[]`, without empty items."""

    async def _get_form(self, **limits: Any) -> FormData:
        form = await (self._multipart_form(**limits) if self._is_multipart() else super()._get_form(**limits))
        items = [(_canonical(name), value) for name, value in form.multi_items()]
        return FormData([(name, value) for name, value in items if str(value).strip() or not name.endswith("[]")])

    def _is_multipart(self) -> bool:
        return parse_options_header(self.headers.get("content-type"))[0] == b"multipart/form-data"

    async def _multipart_form(self, **limits: Any) -> FormData:
        async with aclosing(self.stream()) as stream:
            try:
                return await _Parser(self.headers, stream, **limits).parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from error


class _Parser(MultiPartParser):
    """Starlette's parser, which writes files to disk, with a limit of all fields together."""

    _is_complete = False
    _field_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._field_bytes += end - start
            if self._field_bytes > MAX_FIELD_BYTES:
                raise MultiPartException(f"The fields of a form may have at most {MAX_FIELD_BYTES >> 10} KB in all.")
        super().on_part_data(data, start, end)

    def on_headers_finished(self) -> None:
        # RFC 7578 makes the filename optional, but Starlette recognises files by it.
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") == FILE_FIELD and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + b'; filename=""'
        super().on_headers_finished()

    def on_end(self) -> None:
        self._is_complete = True

    async def parse(self) -> FormData:
        """Raises MultiPartException for a malformed form, and for one that ends before its closing boundary."""
        form = await super().parse()
        if not self._is_complete:
            # A file that was cut off is not in the form.
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("The form ends before its closing boundary.")
        return form


def _canonical(name: str) -> str:
    spelling = LIST_FIELD_SPELLING.fullmatch(name)
    return f"{spelling[1]}[]" if spelling else name
