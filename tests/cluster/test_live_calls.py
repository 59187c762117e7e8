"""Windows of live streams share calls, and nothing else: each has its own outcome, and its stream may leave."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import numpy as np
import pytest

from serve_app.cluster.live_calls import GATHER_S, LiveCalls, LiveWindow, Outcome
from serve_app.errors import EngineBroken, EngineError
from serve_app.transcript import Token
from serve_app.window import Job
from testing import virtual_time

CALL_S = 1.0
SAMPLES = 100
"""Samples of a window."""


def tokens_of(job: Job) -> list[Token]:
    return [Token(f"▁{job.job_id}", 0, 0, 1280, 0.9)]


class Model:
    """`failing` streams fail in their own outcome; with `error`, whole calls do."""

    def __init__(self, *, failing: str = "", error: BaseException | None = None, has_equal_windows: bool = True) -> None:
        self._has_equal_windows = has_equal_windows
        self.calls: list[str] = []
        self.cancelled: list[str] = []
        self._failing = failing
        self._error = error

    async def __call__(self, windows: Sequence[LiveWindow]) -> Sequence[Outcome]:
        names = "".join(job.job_id for job, _, _ in windows)
        assert not self._has_equal_windows or all(len(samples) == SAMPLES for _, samples, _ in windows)
        self.calls.append(names)
        try:
            await asyncio.sleep(CALL_S)
        except asyncio.CancelledError:
            self.cancelled.append(names)
            raise
        if self._error is not None:
            raise self._error
        return [EngineError("it failed") if job.job_id in self._failing else tokens_of(job) for job, _, _ in windows]


def recognise(
    model: Model, names: str, *, gone: str = "", pause_s: float = 0.0, max_windows: int = 3
) -> list[list[Token] | BaseException]:
    """One window of each stream, one after the other; those in `gone` leave while the call runs."""

    async def run() -> list[list[Token] | BaseException]:
        calls = LiveCalls(model, max_windows, max_samples=5 * SAMPLES)
        waiting = {}
        for name in names:
            waiting[name] = asyncio.ensure_future(calls.recognise(Job(name), np.zeros(SAMPLES, np.int16)))
            await asyncio.sleep(pause_s)
        await asyncio.sleep(CALL_S / 2)
        for name in gone:
            waiting[name].cancel()
        return await asyncio.gather(*waiting.values(), return_exceptions=True)

    return virtual_time.run(run())


@pytest.mark.parametrize(
    ("pause_s", "max_windows", "calls"),
    [(0.0, 3, ["abc", "de"]), (0.0, 9, ["abcde"]), (GATHER_S * 0.4, 9, ["abc", "de"]), (GATHER_S * 2, 9, [*"abcde"])],
    ids=["no more than the maximum", "at once", "within the time", "apart"],
)
def test_windows_that_come_together_share_a_call(pause_s: float, max_windows: int, calls: list[str]) -> None:
    model = Model()
    outcomes = recognise(model, "abcde", pause_s=pause_s, max_windows=max_windows)
    assert outcomes == [tokens_of(Job(name)) for name in "abcde"]
    assert model.calls == calls


def test_a_call_fits_into_one_batch_which_is_as_long_as_its_longest_window() -> None:
    model = Model()
    recognise(model, "abcdefgh", max_windows=100)
    assert model.calls == ["abcde", "fgh"]

    async def run() -> list[list[Token]]:
        calls = LiveCalls(model, 100, max_samples=60)
        lengths = {"a": 10, "b": 20, "c": 30, "d": 10, "e": 10, "f": 60, "g": 10}
        return await asyncio.gather(*(calls.recognise(Job(name), np.zeros(n, np.int16)) for name, n in lengths.items()))

    model = Model(has_equal_windows=False)
    assert virtual_time.run(run()) == [tokens_of(Job(name)) for name in "abcdefg"]
    assert model.calls == ["ab", "cd", "e", "f", "g"]


def test_a_call_does_not_belong_to_the_request_of_its_first_stream() -> None:
    """Serve knows by a context variable which calls a request has made, and cancels them with it."""
    request = ContextVar("request", default="none")
    seen = []

    async def call(windows: Sequence[LiveWindow]) -> Sequence[Outcome]:
        seen.append(request.get())
        return [tokens_of(job) for job, _, _ in windows]

    async def run() -> None:
        calls = LiveCalls(call, 3, 5 * SAMPLES)
        request.set("first")
        await calls.recognise(Job("a"), np.zeros(SAMPLES, np.int16))

    virtual_time.run(run())
    assert seen == ["none"]


def test_a_window_that_fails_fails_alone() -> None:
    outcomes = recognise(Model(failing="b"), "abc")
    assert outcomes[0] == tokens_of(Job("a"))
    assert outcomes[2] == tokens_of(Job("c"))
    assert isinstance(outcomes[1], EngineError)


@pytest.mark.parametrize("error", [EngineBroken("the replica is lost"), RuntimeError("unforeseen")])
def test_a_call_that_fails_fails_all_its_windows(error: Exception) -> None:
    outcomes = recognise(Model(error=error), "abcd")
    assert outcomes == [error] * 4


def test_a_stream_that_leaves_disturbs_no_other() -> None:
    model = Model()
    outcomes = recognise(model, "abc", gone="b")
    assert outcomes[0] == tokens_of(Job("a"))
    assert outcomes[2] == tokens_of(Job("c"))
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert model.cancelled == []


def test_a_call_whose_streams_have_all_left_is_cancelled() -> None:
    model = Model()
    outcomes = recognise(model, "abcd", gone="abc")
    assert model.cancelled == ["abc"]
    assert outcomes[3] == tokens_of(Job("d"))


def test_a_stream_that_left_before_the_call_is_not_part_of_it() -> None:
    model = Model()

    async def run() -> None:
        calls = LiveCalls(model, 3, 10**6)
        waiting = [asyncio.ensure_future(calls.recognise(Job(name), np.zeros(SAMPLES, np.int16))) for name in "ab"]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert await waiting[1] == tokens_of(Job("b"))

    virtual_time.run(run())
    assert model.calls == ["b"]
