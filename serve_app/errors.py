"""All errors that a client can receive, with their HTTP status. Only `api/errors.py` turns them into responses.

SpeechError
├── RequestError                 400  the request is invalid
│   ├── AudioError               400  the audio is empty, cannot be decoded, or has invalid parameters
│   ├── ModelNotFound            404  no configured model has this name
│   ├── JobNotFound              404  this key has no job with this id
│   ├── JobStateConflict         409  the job is in a state in which this is not possible
│   ├── IdempotencyConflict      409  another request had the same `Idempotency-Key`
│   ├── InvalidKey               401  the API key is missing or unknown
│   ├── UploadTooSlow            408  the upload paused too long, was too slow, or exceeded the maximum duration of a request
│   ├── StreamIdle               408  a live stream received no message for too long
│   ├── StreamTooLong            408  a live stream reached its maximum duration
│   ├── UploadTooLarge           413  the upload has more bytes than the server accepts
│   └── AudioTooLong             413  the audio is longer than the server accepts
├── ModelUnavailable             503  the model is configured but unavailable (hub, file, no replica, still loading)
├── RateLimited                  429  the API key has reached its limit of requests per minute or in progress
├── StorageFull                  503  the disk has no room for the upload
├── StoreUnavailable             503  the store of jobs is locked, gone or broken
├── MetricsUnavailable           503  Ray exports no metrics on this node, or not now
├── ShuttingDown                 503  the server is shutting down
├── IngressLost                  503  the ingress that had the request ended; sent by Serve's proxy
├── Unserved                     503  the application is not deployed yet, or was removed; sent by Serve's proxy
├── Overloaded                   429  the maximum number of requests or streams is in progress
├── DeadlineExceeded             504  the request exceeded its maximum duration after the upload
└── EngineError                  500  inference failed
    ├── EngineOutOfMemory        500  a batch of one window does not fit into the memory of the device
    └── EngineBroken             503  the replica cannot use its device any more; Serve replaces the replica
"""

UNFORESEEN = "Internal error: the details are in the server's log."
"""Message to the client for an exception that is not a SpeechError, so that no internal text is shown."""


class SpeechError(Exception):
    """Base class. `message` is for people and may change. `param` is the name of the invalid request field, if there is one."""

    status = 500
    """HTTP status."""
    code = "server_error"
    """Stable identifier for programs."""
    retry_after_s: int | None = None
    """Value of the `Retry-After` header, seconds; None: no header."""

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


class JobNotFound(RequestError):
    status = 404
    code = "job_not_found"

    @classmethod
    def by_id(cls, job_id: str) -> "JobNotFound":
        """The error for an unknown job, and for one of another key."""
        return cls(f"There is no job `{job_id}`.")


class JobStateConflict(RequestError):
    status = 409
    code = "job_state_conflict"


class IdempotencyConflict(RequestError):
    status = 409
    code = "idempotency_conflict"


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


class StoreUnavailable(SpeechError):
    status = 503
    code = "store_unavailable"
    retry_after_s = 5

    def __init__(self, message: str = "The store of jobs is unavailable; try again later.", *, param: str | None = None) -> None:
        super().__init__(message, param=param)


class MetricsUnavailable(SpeechError):
    status = 503
    code = "metrics_unavailable"
    retry_after_s = 10


class ShuttingDown(SpeechError):
    status = 503
    code = "shutting_down"
    retry_after_s = 10


class IngressLost(SpeechError):
    status = 503
    code = "ingress_lost"
    retry_after_s = 5

    def __init__(self, message: str = "The process that had this request ended; try again.", *, param: str | None = None) -> None:
        super().__init__(message, param=param)


class Unserved(SpeechError):
    status = 503
    code = "unserved"
    retry_after_s = 10

    def __init__(self, message: str = "No model is served here now; try again later.", *, param: str | None = None) -> None:
        super().__init__(message, param=param)


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


class DiarizerChanged(EngineError):
    """The state of a recording is that of another diarizer: it was replaced meanwhile."""


class AudioUnreachable(EngineError):
    """The replica cannot read the audio of a call in the memory of the ingress. No client gets this: the ingress makes the call
    again with its audio."""


class EngineBroken(EngineError):
    status = 503
    code = "engine_broken"
    retry_after_s = 10


def _rebuild(kind: type[SpeechError], message: str, param: str | None) -> SpeechError:
    return kind(message, param=param)
