"""How the fields of a form arrive: spellings of list fields, files without a filename, forms that end early.

A large file is worked on while it arrives: once a part of it is on disk, the route runs with the fields that came before the
file. What it returns is the response, provided that nothing follows the file; otherwise the route runs again, as it does for all
other forms, when the form is complete.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, BinaryIO, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive, Scope

from serve_app.audio.growing_file import GrowingFile
from serve_app.tasks import stop

FILE_FIELD = b"file"
"""The field that is a file, with or without a filename."""

REFERENCE_FIELD = "known_speaker_references"
"""A list field whose items are as large as files, and are kept as such."""

LIST_FIELDS = ("include", "keywords", "languages", "timestamp_granularities", "known_speaker_names", REFERENCE_FIELD)
"""Fields that may be repeated. In the API's description, their names end with `[]`."""

LIST_FIELD_SPELLING = re.compile(rf"({'|'.join(LIST_FIELDS)})(\[\d*\])?")
"""`keywords[]`, `keywords` and `keywords[0]` are the same field."""

MAX_FIELD_BYTES = 256 << 10
"""Maximum size of all fields of a form, bytes. They are held in memory until the response."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
"""Runs a route."""


class FormRoute(APIRoute):
    """A route that reads its form as a FormRequest."""

    works_early = True

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            form = FormRequest(request.scope, request.receive, handle if self.works_early else None)
            try:
                return await handle(form)
            finally:
                await stop(form.early_response)

        return handle_form


class CompleteFormRoute(FormRoute):
    """The same, but it runs once the form is complete."""

    works_early = False


class FormRequest(Request):
    """A request whose form has every list field under its name with `[]`, without empty items."""

    def __init__(self, scope: Scope, receive: Receive, handle: Handler | None, form: FormData | None = None) -> None:
        """`handle`: None: nothing is begun early. `form`: None: the body is read, once."""
        super().__init__(scope, receive)
        self._handle = handle
        self._given_form = form
        self._growing: GrowingFile | None = None
        self.early_response: asyncio.Future[Response] | None = None
        """The response to this form, which was begun while its file arrived; None: it is still to be made."""

    async def _get_form(self, **limits: Any) -> FormData:
        if self._given_form is None:
            form = await (self._multipart_form(**limits) if self._is_multipart() else super()._get_form(**limits))
            self._given_form = _cleaned(form)
        return self._given_form

    def _is_multipart(self) -> bool:
        return parse_options_header(self.headers.get("content-type"))[0] == b"multipart/form-data"

    async def _multipart_form(self, **limits: Any) -> FormData:
        async with aclosing(self.stream()) as stream:
            try:
                parser = _Parser(self.headers, stream, **limits)
                parser.on_written = lambda: self._work_early(parser)
                form = await parser.parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from error
        if (growing := self._growing) is not None:
            growing.notice_growth()
            if not parser.ends_with_file or growing.size_bytes != growing.final_bytes:
                await stop(self.early_response)
                self.early_response = None
            growing.finish()
        return form

    def _work_early(self, parser: "_Parser") -> None:
        """Begin if it is time to, or tell of what was written since."""
        if self._growing is not None:
            self._growing.notice_growth()
        elif self._handle and (upload := parser.growing_file) is not None and self.state.may_begin_early():
            self._growing = growing = GrowingFile(upload.file, parser.final_file_bytes)
            file = UploadFile(cast(BinaryIO, growing), filename=upload.filename, headers=upload.headers)
            form = FormData([*parser.items, (FILE_FIELD.decode(), file)])
            request = FormRequest(self.scope, self.receive, self._handle, _cleaned(form))
            self.early_response = asyncio.ensure_future(self._handle(request))


class _Parser(MultiPartParser):
    """Starlette's parser, which writes files to disk, with a limit of all fields together.

    `on_written` is called after each piece of the body, with its part of the file written.
    """

    _is_complete = False
    _files = _field_bytes = _body_bytes = 0
    _file_start_bytes: int | None = None
    on_written: Callable[[], None]

    @property
    def growing_file(self) -> UploadFile | None:
        """The file field, if it comes after others, is on disk and is not complete. None too if its final size is unknown."""
        part = self._current_part
        if part.file is None or part.field_name != FILE_FIELD.decode() or not self.items or "content-length" not in self.headers:
            return None
        return part.file if self.spool_max_size < (part.file.size or 0) < self.final_file_bytes else None

    @property
    def ends_with_file(self) -> bool:
        """Whether the file is complete, and nothing has followed."""
        return bool(self.items) and self.items[-1][1] is self._current_part.file

    @property
    def final_file_bytes(self) -> int:
        """Size of the complete file, bytes, if it is the last part of the form."""
        boundary = parse_options_header(self.headers["content-type"])[1][b"boundary"]
        return int(self.headers["content-length"]) - (self._file_start_bytes or 0) - len(b"\r\n--" + boundary + b"--\r\n")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.field_name == FILE_FIELD.decode() and self._file_start_bytes is None:
            self._file_start_bytes = self._body_bytes + start
        if self._current_part.file is None:
            self._field_bytes += end - start
            if self._field_bytes > MAX_FIELD_BYTES:
                raise MultiPartException(f"The fields of a form may have at most {MAX_FIELD_BYTES >> 10} KB in all.")
        super().on_part_data(data, start, end)

    def on_headers_finished(self) -> None:
        # RFC 7578 makes the filename optional, but Starlette recognises files by it.
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        name = options.get(b"name", b"")
        is_reference = _canonical(name.decode(errors="replace")) == f"{REFERENCE_FIELD}[]"
        if (name == FILE_FIELD or is_reference) and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + b'; filename=""'
        super().on_headers_finished()
        if part.file is not None and is_reference:
            # Several of them would hold a lot of memory.
            part.file.file.rollover()  # type: ignore[attr-defined]  # Starlette's are SpooledTemporaryFiles
        elif part.file is not None:
            self._files += 1
            if self._files > 1:
                raise MultiPartException("A form may have one file only, and references of known speakers.")

    def on_end(self) -> None:
        self._is_complete = True

    async def parse(self) -> FormData:
        """Raises MultiPartException for a malformed form, and for one that ends before its closing boundary."""
        async with aclosing(self._counted(self.stream)) as self.stream:
            form = await super().parse()
        if not self._is_complete:
            # A file that was cut off is not in the form.
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("The form ends before its closing boundary.")
        return form

    async def _counted(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for piece in stream:
            yield piece
            self._body_bytes += len(piece)
            self.on_written()


def _cleaned(form: FormData) -> FormData:
    items = [(_canonical(name), value) for name, value in form.multi_items()]
    return FormData([(name, value) for name, value in items if str(value).strip() or not name.endswith("[]")])


def _canonical(name: str) -> str:
    spelling = LIST_FIELD_SPELLING.fullmatch(name)
    return f"{spelling[1]}[]" if spelling else name
