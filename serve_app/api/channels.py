"""The form fields of recordings whose channels are transcribed one by one."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Form


@dataclass(frozen=True, slots=True)
class ChannelChoice:
    """What a request asks for."""

    multichannel: bool = False
    drops_crosstalk: bool | None = None
    """None: as the settings say."""


async def channel_choice(
    multichannel: Annotated[
        bool, Form(description="Transcribe every channel of the recording by itself, up to 8 of them, instead of their mix.")
    ] = False,
    drop_crosstalk: Annotated[
        bool | None,
        Form(
            description="With `multichannel`: leave out words that another channel has at the same time and clearly louder. If "
            "omitted: as the server's setting `channels.drop_crosstalk` says."
        ),
    ] = None,
) -> ChannelChoice:
    """FastAPI dependency."""
    return ChannelChoice(multichannel, drop_crosstalk)
