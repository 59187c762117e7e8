"""The form fields of who speaks: whether it is asked for, and who is known."""

import asyncio
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, BinaryIO, Literal
from urllib.parse import unquote_to_bytes

from fastapi import File, Form, UploadFile
from pydantic import WithJsonSchema

from serve_app.api.response_formats import Rendering
from serve_app.decoders.references import MAX_REFERENCE_S, MIN_REFERENCE_S, PARAM, reference_samples
from serve_app.diarization.references import KnownSpeaker
from serve_app.diarizing import SpeakerOptions
from serve_app.errors import RequestError
from serve_app.service import SpeechService

NAMES = "known_speaker_names[]"
MAX_KNOWN = 4
"""OpenAI's limit, and the number of speakers that diarizers tell apart."""

MAX_NAME_CHARS = 64
"""Of a speaker's name, which an answer repeats with every word."""

MAX_URL_BYTES = 8 << 20
"""Of one reference: 10 s of WAV at 96 kHz in stereo are 5.1 MB."""

DATA_URL = re.compile(rb'data:(?:"[^"]*"|[^",])*,', re.IGNORECASE)
Reference = Annotated[UploadFile, WithJsonSchema({"type": "string", "format": "uri"})]
"""A part of the form which the parser has put on disk."""


@dataclass(frozen=True, slots=True)
class SpeakerChoice:
    """What a request asks for."""

    diarize: bool | Literal["optional"] | None = None
    diarizer: str | None = None
    names: tuple[str, ...] = ()
    references: tuple[BinaryIO, ...] = ()
    """A data URL each."""

    async def options(self, service: SpeechService, rendering: Rendering, *, multichannel: bool) -> SpeakerOptions | None:
        """None: who speaks is not asked for. Raises RequestError."""
        is_implied = rendering.response_format == "diarized_json"
        if is_implied and self.diarize is False:
            raise RequestError("`diarized_json` says who speaks: it does not go with `diarize=false`.", param="diarize")
        if not (self.diarize or is_implied):
            if self.names or self.references or self.diarizer:
                field = "diarizer" if self.diarizer else NAMES
                raise RequestError(f"`{field}` needs `diarize=true`, or `response_format=diarized_json`.", param=field)
            return None
        param = "diarize" if self.diarize else "response_format"
        if multichannel:
            raise RequestError(
                "`multichannel` does not go with `diarize` and `diarized_json`: speakers are told apart in one channel.",
                param=param,
            )
        diarizer = service.find_diarizer(self.diarizer, param)
        known = await self._known(service)
        return SpeakerOptions(diarizer, known, is_optional=self.diarize == "optional")

    async def _known(self, service: SpeechService) -> tuple[KnownSpeaker, ...]:
        names = _checked(self.names, len(self.references))
        data = [await asyncio.to_thread(_data_of, *each) for each in zip(names, self.references, strict=True)]
        samples = [await reference_samples(service.decoders, *each) for each in zip(names, data, strict=True)]
        return tuple(map(KnownSpeaker, names, samples))


async def speaker_choice(
    diarize: Annotated[
        bool | Literal["optional"] | None,
        Form(
            description="Find out who speaks. `optional`: where no diarizer is available, the transcript comes without speakers, "
            "and with a warning. `response_format=diarized_json` implies `true`. Not with `multichannel`."
        ),
    ] = None,
    diarizer: Annotated[str | None, Form(description="Name of a diarizer. If omitted: the first of the server.")] = None,
    names: Annotated[
        list[str] | None,
        Form(
            alias=NAMES,
            description=f"Names of up to {MAX_KNOWN} people who may speak, each with a reference, in the same order. All others "
            "are called A, B, ... in the order in which they begin to speak.",
        ),
    ] = None,
    references: Annotated[
        list[Reference] | None,
        File(
            alias=PARAM,
            description=f"How these people sound: a data URL each, of {MIN_REFERENCE_S:.0f} to {MAX_REFERENCE_S:.0f} s of their "
            "speech alone in any media format.",
        ),
    ] = None,
) -> SpeakerChoice:
    """FastAPI dependency."""
    given = tuple(reference.file for reference in references or () if not _is_blank(reference.file))
    return SpeakerChoice(diarize, diarizer or None, tuple(names or ()), given)


def _is_blank(file: BinaryIO) -> bool:
    """Whether it is an empty item of a list, as clients send it for none. Unlike text it stays in the form, which closes it."""
    head = file.read(64)
    file.seek(0)
    return not head.strip()


def _checked(names: Sequence[str], references: int) -> list[str]:
    names = [" ".join(name.split()) for name in names]
    if len(names) != references:
        raise RequestError(
            f"Every known speaker needs a name and a reference; names: {len(names)}, references: {references}.", param=NAMES
        )
    if len(names) > MAX_KNOWN:
        raise RequestError(f"At most {MAX_KNOWN} speakers may be known, not {len(names)}.", param=NAMES)
    if len(set(names)) < len(names):
        raise RequestError("Two known speakers have the same name.", param=NAMES)
    for name in names:
        if not name.isprintable() or len(name) > MAX_NAME_CHARS:
            raise RequestError(f"A name has at most {MAX_NAME_CHARS} printable characters.", param=NAMES)
    return names


def _data_of(name: str, file: BinaryIO) -> bytes:
    """What a data URL holds. Blocking."""
    file.seek(0)
    url = file.read(MAX_URL_BYTES + 1).strip()
    if len(url) > MAX_URL_BYTES:
        raise RequestError(f"The reference of the speaker `{name}` is larger than {MAX_URL_BYTES >> 20} MB.", param=PARAM)
    head = DATA_URL.match(url)
    try:
        if head is None:
            raise ValueError
        data = unquote_to_bytes(url[head.end() :])
        return binascii.a2b_base64(data) if head[0][:-1].rstrip().lower().endswith(b";base64") else data
    except ValueError:
        raise RequestError(
            f"The reference of the speaker `{name}` is no data URL, such as `data:audio/wav;base64,...`.", param=PARAM
        ) from None
