"""Windows of live streams that are due at about the same time share one call to a replica."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

from serve_app.errors import SpeechError
from serve_app.transcript import Token
from serve_app.window import Job, Samples

GATHER_S = 0.005
"""How long a window waits for others, seconds. The VAD processes the streams together, so their windows come together."""

LiveWindow = tuple[Job, Samples, str]
"""The stream, the window's audio, int16 [samples], and the id of its request, for log lines."""

Outcome = list[Token] | SpeechError
"""The tokens of a window, or why there are none."""

Call = Callable[[Sequence[LiveWindow]], Awaitable[Sequence[Outcome]]]
"""Has the windows recognised by one replica. Raises if all of them fail."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    job: Job
    samples: Samples
    request_id: str
    outcome: "asyncio.Future[list[Token]]"


class LiveCalls:
    """Makes the calls of one ingress to one model."""

    def __init__(self, call: Call, max_windows: int, max_samples: int) -> None:
        """A call has at most `max_windows` windows and `max_samples` samples, with every window as long as the longest: what
        fits into one batch, so that no window waits for the batch after its own."""
        self._call = call
        self._max_windows, self._max_samples = max_windows, max_samples
        self._waiting: list[_Waiting] = []
        self._running: set[asyncio.Task[None]] = set()

    async def recognise(self, job: Job, samples: Samples, request_id: str = "") -> list[Token]:
        """The tokens of one window. Raises what its recognition, or the call, raised."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # In a context of its own: Serve would cancel the call together with the request of the first stream.
            loop.call_later(GATHER_S, self._send_waiting, context=Context())
        waiting = _Waiting(job, samples, request_id, loop.create_future())
        self._waiting.append(waiting)
        return await waiting.outcome

    def _send_waiting(self) -> None:
        # The outcome of a stream that has left is cancelled.
        waiting, self._waiting = [window for window in self._waiting if not window.outcome.done()], []
        together: list[_Waiting] = []
        longest = 0
        for window in waiting:
            longest = max(longest, len(window.samples))
            if together and (len(together) == self._max_windows or longest * (len(together) + 1) > self._max_samples):
                self._start(together)
                together, longest = [], len(window.samples)
            together.append(window)
        if together:
            self._start(together)

    def _start(self, windows: Sequence[_Waiting]) -> None:
        task = asyncio.create_task(self._send(windows))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _send(self, windows: Sequence[_Waiting]) -> None:
        calling = asyncio.ensure_future(self._call([(waiting.job, waiting.samples, waiting.request_id) for waiting in windows]))

        def stop_unless_wanted(_: object) -> None:
            if all(waiting.outcome.cancelled() for waiting in windows):
                calling.cancel()

        for waiting in windows:
            waiting.outcome.add_done_callback(stop_unless_wanted)
        outcomes: Sequence[list[Token] | BaseException]
        try:
            outcomes = await calling
        except (Exception, asyncio.CancelledError) as error:
            outcomes = [error] * len(windows)
        for waiting, outcome in zip(windows, outcomes, strict=True):
            if waiting.outcome.done():
                continue
            if isinstance(outcome, BaseException):
                waiting.outcome.set_exception(outcome)
            else:
                waiting.outcome.set_result(outcome)
