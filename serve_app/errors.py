"""Every failure a client can be told about. `api/errors.py` maps the tree once to HTTP; nothing else chooses a status.

SpeechError
├── RequestError                 400  the request cannot be honoured as it stands
│   ├── AudioError               400  the file is empty, not media, has no sound, or is damaged from the start
│   ├── ModelNotFound            404  no model of that name is configured
│   ├── InvalidKey               401  no API key, or not one of this server's
│   ├── UploadTooSlow            408  the sender paused too long, or took all the time that the request had
│   ├── StreamIdle               408  nothing came over a live stream
│   ├── StreamTooLong            408  a live stream was open for as long as it may be
│   ├── UploadTooLarge           413  more bytes than the server accepts
│   └── AudioTooLong             413  more seconds of audio than the server accepts
├── ModelUnavailable             503  the model is configured but cannot be had now (hub, file, no replica, still loading)
├── RateLimited                  429  the key has used up what it may ask for; try again later
├── StorageFull                  503  an upload cannot be written to disk
├── ShuttingDown                 503  the server takes on nothing more
├── Overloaded                   429  as many requests as the server takes at once are at work; try again later
├── DeadlineExceeded             504  the answer did not come within the limit
└── EngineError                  500  inference failed
    ├── EngineOutOfMemory        500  even a single window does not fit on the device
    └── EngineBroken             503  the device is lost to this process; the replica will be replaced
"""

UNFORESEEN = "The server failed; its log says how."


class SpeechError(Exception):
    """Base. `message` is for people; `code` is for programs and never changes; `param` names the request field at fault."""

    status = 500
    code = "server_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.param)


class RequestError(SpeechError):
    status = 400
    code = "invalid_request"


class AudioError(RequestError):
    code = "invalid_audio"

    def __init__(self, message: str, *, param: str | None = "file") -> None:
        super().__init__(message, param=param)


class InvalidKey(RequestError):
    status = 401
    code = "invalid_api_key"


class UploadTooSlow(RequestError):
    status = 408
    code = "upload_too_slow"


class StreamIdle(RequestError):
    status = 408
    code = "stream_idle"


class StreamTooLong(RequestError):
    status = 408
    code = "stream_too_long"


class AudioTooLong(RequestError):
    status = 413
    code = "audio_too_long"


class UploadTooLarge(RequestError):
    status = 413
    code = "upload_too_large"

    @classmethod
    def over(cls, max_bytes: int) -> "UploadTooLarge":
        """The error for a limit of that many bytes."""
        return cls(f"The upload is larger than the {max_bytes / 1e6:.0f} MB that this server accepts.", param="file")


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class ModelUnavailable(SpeechError):
    status = 503
    code = "model_unavailable"
    retry_after_s = 10


class RateLimited(SpeechError):
    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class StorageFull(SpeechError):
    status = 503
    code = "storage_full"
    retry_after_s = 60

    def __init__(
        self, message: str = "The server cannot store the upload; try again later.", *, param: str | None = None
    ) -> None:
        super().__init__(message, param=param)


class ShuttingDown(SpeechError):
    status = 503
    code = "shutting_down"
    retry_after_s = 10


class Overloaded(SpeechError):
    status = 429
    code = "overloaded"
    retry_after_s = 5


class DeadlineExceeded(SpeechError):
    status = 504
    code = "deadline_exceeded"


class EngineError(SpeechError):
    code = "engine_error"


class EngineOutOfMemory(EngineError):
    code = "engine_out_of_memory"


class EngineBroken(EngineError):
    status = 503
    code = "engine_broken"
    retry_after_s = 10


def _rebuild(kind: type[SpeechError], message: str, param: str | None) -> SpeechError:
    return kind(message, param=param)
