"""The messages between an ingress and a decoder process: one JSON array a line, the kind first. Audio is in the shared memory."""

import json
from dataclasses import astuple, dataclass, field


@dataclass(frozen=True, slots=True)
class Open:
    """To the process: decode a file, whose descriptor follows over the socket for descriptors."""

    job: int
    window_s: float
    overlap_s: float
    track: int | None
    formats: list[str]
    """Containers that are allowed, by FFmpeg's names; empty: all."""
    size_bytes: int | None
    """Of the complete file; None: unknown."""
    is_complete: bool
    """False: the file grows."""
    first_window: int
    """So many windows are not sent: they were received already."""
    multichannel: bool = False
    """Every channel has windows of its own; else they are mixed."""


@dataclass(frozen=True, slots=True)
class Request:
    """To the process: send the next window of a job once it is decoded."""

    job: int


@dataclass(frozen=True, slots=True)
class Grown:
    """To the process: a growing file has so many bytes by now."""

    job: int
    size_bytes: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Close:
    """To the process: stop a job. Nothing more is sent for it."""

    job: int


@dataclass(frozen=True, slots=True)
class SlotFree:
    """To the process: the window in this slot of the shared memory was copied."""

    slot: int


@dataclass(frozen=True, slots=True)
class Ready:
    """To the ingress: the process is started."""


@dataclass(frozen=True, slots=True)
class WindowDone:
    """To the ingress: a window is in a slot of the shared memory."""

    job: int
    slot: int
    index: int
    start_sample: int
    samples: int
    announced_s: float | None
    channel: int = 0
    channels: int | None = None
    """How many there are, with `multichannel`."""


@dataclass(frozen=True, slots=True)
class Starved:
    """To the ingress: the process has read a growing file up to this byte, and waits for more."""

    job: int
    position: int


@dataclass(frozen=True, slots=True)
class Ended:
    """To the ingress: all windows of a job were sent."""

    job: int
    announced_s: float | None
    warnings: list[str]
    copies: list[int] = field(default_factory=list)
    """With `multichannel`: the channels that only repeat the first one, whose windows are digital silence."""


@dataclass(frozen=True, slots=True)
class Failed:
    """To the ingress: the file has no audio that can be decoded (`is_expected`), or the process has a fault."""

    job: int
    message: str
    param: str | None
    is_expected: bool


Message = Open | Request | Grown | Close | SlotFree | Ready | WindowDone | Starved | Ended | Failed
_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Open, Request, Grown, Close, SlotFree, Ready, WindowDone, Starved, Ended, Failed)
}


def encode(message: Message) -> bytes:
    """The line of a message."""
    return json.dumps([type(message).__name__, *astuple(message)]).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line. Raises ValueError."""
    try:
        kind, *values = json.loads(line)
        return _KINDS[kind](*values)
    except (KeyError, TypeError) as error:
        raise ValueError("unknown message") from error
