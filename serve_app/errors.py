"""Every error that a client can receive. `api/errors.py` maps this tree to HTTP; nothing else chooses a status.

SpeechError
├── RequestError                 400  the request is invalid
│   ├── AudioError               400  the file is empty, not media, without audio, or damaged from the start
│   ├── ModelNotFound            404  no model of that name is configured
│   ├── InvalidKey               401  no API key, or not one of this server's
│   ├── UploadTooSlow            408  the upload paused too long, or took longer than a request may
│   ├── StreamIdle               408  a live stream received nothing for too long
│   ├── StreamTooLong            408  a live stream reached its maximum duration
│   ├── UploadTooLarge           413  more bytes than the server accepts
│   └── AudioTooLong             413  more seconds of audio than the server accepts
├── ModelUnavailable             503  the model is configured but unavailable (hub, file, no replica, still loading)
├── RateLimited                  429  the key has reached its rate limit
├── StorageFull                  503  an upload cannot be written to disk
├── ShuttingDown                 503  the server is shutting down
├── Overloaded                   429  the server has as many requests in progress as it accepts
├── DeadlineExceeded             504  the answer took longer than a request may
└── EngineError                  500  inference failed
    ├── EngineOutOfMemory        500  not even a single window fits into the device's memory
    └── EngineBroken             503  the device is lost to this process; the replica is replaced
"""

UNFORESEEN = "The server failed; its log says how."


class SpeechError(Exception):
    """Base. `message` is for people; `code` is for programs and stable; `param` names the invalid request field."""

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
        """The error for an upload of more than `max_bytes`."""
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
