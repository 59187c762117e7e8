"""The client of a model's replicas, on a fake deployment handle and in virtual time: retries, waiting, errors."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.serve import context
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.cluster.calls import CHECK_S, LOAD_FAILED, MAX_ATTEMPTS, MAX_BY_VALUE_BYTES, RETRY_DELAY_S
from serve_app.cluster.live_calls import LiveWindow
from serve_app.cluster.model_client import BY_VALUE_S, SETTLE_CHECKS, ModelClient
from serve_app.cluster.shared_audio import Place, SentAudio, SharedAudio, received
from serve_app.cluster.status import ReplicaStatus
from serve_app.errors import UNFORESEEN, EngineBroken, EngineError, EngineOutOfMemory, ModelUnavailable, SpeechError
from serve_app.observe import catalogue
from serve_app.settings import LimitSettings, ModelSettings, Settings
from serve_app.transcript import Token, TokenColumns
from serve_app.window import Job, Lane, Window, new_samples
from testing import virtual_time
from testing.metrics import MemoryRecorder

FIRST = Window(0, 0, np.zeros(16_000, dtype=np.int16))
JOB = Job("job")
WINDOW = Window(3, 0, np.zeros(16_000, dtype=np.int16))
TOKENS = [Token("▁one", 1, 0, 1280, 0.75)]
COLUMNS = TokenColumns.of(TOKENS)
MODEL = ModelSettings(name="m", source="bundled")
SETTINGS = Settings(models=(MODEL,), limits=LimitSettings(model_wait_s=10))


class FakeResponse:
    """Like Serve's: waiting for it can end without ending the work; only `cancel` does that."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self._work = asyncio.ensure_future(work)

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self._work).__await__()

    def cancel(self) -> None:
        self._work.cancel()


class FakeHandle:
    """A deployment handle with one method."""

    def __init__(self, name: str, answer: Callable[..., Awaitable[Any]]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.by_reference: list[bool] = []
        setattr(self, name, self)
        self._answer = answer

    def options(self, *, _by_reference: bool) -> "FakeHandle":
        self.by_reference.append(_by_reference)
        return self

    def remote(self, *args: Any) -> Awaitable[Any]:
        self.calls.append(args)
        return FakeResponse(self._answer(*args))


async def deployed() -> bool:
    return True


def client_with(
    answer: Callable[..., Awaitable[Any]], *statuses: ReplicaStatus, is_deployed: Callable[[], Awaitable[bool]] = deployed
) -> tuple[ModelClient, FakeHandle]:
    replicas: Any = FakeHandle("transcribe", answer)
    return ModelClient(MODEL, SETTINGS, replicas, lambda: statuses, is_deployed, MemoryRecorder()), replicas


def failing(*failures: BaseException) -> Callable[..., Awaitable[TokenColumns]]:
    """Fails in these ways, then answers."""
    left = list(failures)

    async def answer(*_: Any) -> TokenColumns:
        if left:
            raise left.pop(0)
        return COLUMNS

    return answer


def pickled_for_this_node(audio: SentAudio) -> Any:
    """What a replica on the node of the ingress gets."""
    audio.is_near = True
    return pickle.loads(pickle.dumps(audio))


def as_seen_by_a_caller(error: Exception) -> RayTaskError:
    return RayTaskError("transcribe", "traceback", error)  # type: ignore[no-untyped-call]


class TestModelClient:
    def test_an_answer_is_passed_on(self) -> None:
        client, handle = client_with(failing())
        assert virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB)) == TOKENS
        ((lane, job, is_isolated, audio),) = handle.calls
        assert audio.samples is WINDOW.samples
        assert (lane, job, is_isolated) == (Lane.BULK, JOB, False)
        assert not handle.by_reference

    @pytest.mark.parametrize("lane", Lane)
    def test_a_replica_that_cannot_read_the_shared_audio_gets_it_with_the_call(
        self, lane: Lane, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As in a container of its own. It is told once, though several calls fail, and shared again after a while."""
        audio = SharedAudio()
        samples = audio.new_samples(16_000)
        samples[:] = range(16_000)
        by_place: list[bool] = []

        async def answer(*arguments: Any) -> Any:
            windows = [audio for _, audio, _ in arguments[0]] if lane == Lane.LIVE else arguments[-1:]
            for argument in map(pickled_for_this_node, windows):
                by_place.append(isinstance(argument, Place))
                sent = argument._replace(path="/proc/0/fd/3") if isinstance(argument, Place) else argument
                assert received(sent, new_samples).tolist() == samples.tolist()
            return [COLUMNS] * len(windows) if lane == Lane.LIVE else COLUMNS

        replicas: Any = FakeHandle("transcribe", answer)
        replicas.transcribe_live = replicas
        client = ModelClient(MODEL, SETTINGS, replicas, tuple, deployed, MemoryRecorder(), audio)

        async def run() -> None:
            for wait_s, is_shared in ((0.0, True), (BY_VALUE_S / 2, False), (BY_VALUE_S, True)):
                await asyncio.sleep(wait_s)
                by_place.clear()
                calls = [client.recognise(Window(number, 0, samples), lane, Job(str(number))) for number in range(3)]
                assert await asyncio.gather(*calls) == [TOKENS] * 3
                assert any(by_place) == is_shared

        virtual_time.run(run())
        assert caplog.text.count("windows of model m are sent with their audio for a while") == 2

    @pytest.mark.parametrize("lane", Lane)
    def test_shared_audio_stays_until_the_answer(self, lane: Lane) -> None:
        """Serve need not keep the arguments of a call that it has sent."""
        audio = SharedAudio()
        samples = audio.new_samples(16_000)
        samples[:] = range(16_000)
        expected = samples.tolist()

        class ForgetfulHandle(FakeHandle):
            def remote(self, *arguments: Any) -> Awaitable[Any]:
                sent = arguments[0][0][1] if lane == Lane.LIVE else arguments[-1]
                return FakeResponse(self._answer(pickled_for_this_node(sent)))

        async def answer(place: Any) -> Any:
            await asyncio.sleep(1)
            others = [audio.new_samples(16_000) for _ in range(50)]
            for other in others:
                other[:] = -1
            assert isinstance(place, Place)
            assert received(place, new_samples).tolist() == expected
            return [COLUMNS] if lane == Lane.LIVE else COLUMNS

        replicas: Any = ForgetfulHandle("transcribe", answer)
        replicas.transcribe_live = replicas
        client = ModelClient(MODEL, SETTINGS, replicas, tuple, deployed, MemoryRecorder(), audio)
        assert virtual_time.run(client.recognise(Window(3, 0, samples), lane, JOB)) == TOKENS

    @pytest.mark.parametrize("lane", Lane)
    def test_serve_cancels_no_call_together_with_its_request(self, lane: Lane) -> None:
        """What Serve and Ray know of the request in whose context a call is made; Ray's own marks, whatever they are, are not
        there either."""
        mark: ContextVar[str] = ContextVar("mark", default="")
        seen: list[Any] = []

        async def answer(first: Any, *_: Any) -> Any:
            seen.append((mark.get(), context._get_serve_request_context()))
            return [COLUMNS] if lane == Lane.LIVE else COLUMNS

        async def recognise() -> None:
            mark.set("set")
            context._set_request_context(request_id="of a client", _internal_request_id="of Serve", route="/r", app_name="app")
            client, handle = client_with(answer)
            handle.transcribe_live = handle  # type: ignore[attr-defined]
            await client.recognise(WINDOW, lane, JOB)

        virtual_time.run(recognise())
        ((of_mark, of_serve),) = seen
        assert not of_mark
        assert not of_serve._internal_request_id
        if lane != Lane.LIVE:
            assert (of_serve.request_id, of_serve.route, of_serve.app_name) == ("of a client", "/r", "app")

    def test_windows_of_live_streams_share_an_answer(self) -> None:
        async def answer(windows: Sequence[LiveWindow]) -> list[TokenColumns | SpeechError]:
            return [COLUMNS if job == JOB else ModelUnavailable("no") for job, _, _ in windows]

        async def both() -> list[Any]:
            jobs = (JOB, Job("other"))
            waiting = (client.recognise(WINDOW, Lane.LIVE, job) for job in jobs)
            return await asyncio.gather(*waiting, return_exceptions=True)

        replicas: Any = FakeHandle("transcribe_live", answer)
        client = ModelClient(MODEL, SETTINGS, replicas, tuple, deployed)
        tokens, error = virtual_time.run(both())
        assert tokens == TOKENS
        assert isinstance(error, ModelUnavailable)
        assert len(replicas.calls) == 1

    @pytest.mark.parametrize(
        ("before", "after", "lane", "moved"),
        [(1, 4, Lane.BULK, 150), (1, 4, Lane.LIVE, 0), (2, 4, Lane.INTERACTIVE, 100), (0, 2, Lane.BULK, 0), (2, 1, Lane.BULK, 0)],
    )
    def test_replicas_that_are_added_get_their_share_of_the_windows_that_wait(
        self, before: int, after: int, lane: Lane, moved: int
    ) -> None:
        statuses = [ReplicaStatus(str(number), "ready") for number in range(before)]
        cancelled_s: list[float] = []

        async def answer(*arguments: Any) -> Any:
            try:
                await asyncio.sleep(10 * CHECK_S)
            except asyncio.CancelledError:
                cancelled_s.append(virtual_time.now_s())
                raise
            return COLUMNS if len(arguments) > 1 else [COLUMNS] * len(arguments[0])

        replicas: Any = FakeHandle("transcribe", answer)
        replicas.transcribe_live = replicas
        client = ModelClient(MODEL, SETTINGS, replicas, lambda: statuses, deployed)

        async def burst() -> list[list[Token]]:
            waiting = [asyncio.create_task(client.recognise(WINDOW, lane, Job(str(number)))) for number in range(200)]
            await asyncio.sleep(CHECK_S / 2)
            statuses[:] = [ReplicaStatus(str(number), "ready") for number in range(after)]
            return await asyncio.gather(*waiting)

        assert virtual_time.run(burst()) == [TOKENS] * 200
        # Each decides by itself, at random: five standard deviations.
        assert len(cancelled_s) == pytest.approx(moved, abs=5 * 7 if moved else 0)
        assert all(at_s >= SETTLE_CHECKS * CHECK_S for at_s in cancelled_s), "Serve's router has to know the replicas by then"

    def test_a_window_that_is_too_long_for_a_message_is_sent_by_reference(self) -> None:
        client, handle = client_with(failing())
        long = Window(0, 0, np.zeros(MAX_BY_VALUE_BYTES // 2 + 1, np.int16))
        assert virtual_time.run(client.recognise(long, Lane.BULK, JOB)) == TOKENS
        assert handle.by_reference == [True]

    @pytest.mark.parametrize(
        "lost",
        [
            ActorDiedError(),
            OutOfMemoryError("killed"),  # type: ignore[no-untyped-call]
            WorkerCrashedError(),
            as_seen_by_a_caller(EngineBroken("the GPU failed")),
            EngineBroken("the GPU failed"),
            AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata()),
            asyncio.CancelledError(),
        ],
    )
    def test_a_window_lost_with_its_replica_is_sent_again(self, lost: BaseException) -> None:
        client, handle = client_with(failing(lost, lost))
        assert virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB)) == TOKENS
        assert [(lane, is_isolated) for lane, _, is_isolated, *_ in handle.calls] == [
            (Lane.BULK, False),
            (Lane.INTERACTIVE, True),
            (Lane.INTERACTIVE, True),
        ]
        assert isinstance(client.recorder, MemoryRecorder)
        assert client.recorder.total(catalogue.WINDOWS_RETRIED, "m") == 2

    def test_a_window_that_fails_is_tried_once_more(self) -> None:
        client, handle = client_with(failing(KeyError("no")))
        assert virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB)) == TOKENS
        assert [is_isolated for _, _, is_isolated, _ in handle.calls] == [False, True]

    def test_a_window_that_fails_is_lost_with_a_replica_too(self) -> None:
        client, handle = client_with(failing(KeyError("no"), EngineBroken("five in a row"), ActorDiedError()))
        assert virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB)) == TOKENS
        assert len(handle.calls) == 4

    def test_a_window_that_does_not_fit_is_not_tried_again(self) -> None:
        client, handle = client_with(failing(EngineOutOfMemory("no room")))
        with pytest.raises(EngineOutOfMemory):
            virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB))
        assert len(handle.calls) == 1

    def test_attempts_are_limited(self) -> None:
        client, handle = client_with(failing(*[ActorDiedError()] * 10))
        with pytest.raises(EngineBroken, match="failed one after the other"):
            virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB))
        assert len(handle.calls) == MAX_ATTEMPTS

    @pytest.mark.parametrize("by_reference", [True, False])
    def test_a_failure_of_ours_arrives_as_it_was(self, by_reference: bool) -> None:
        error = ModelUnavailable("no file", param="model")
        client, _ = client_with(failing(as_seen_by_a_caller(error) if by_reference else error))
        with pytest.raises(ModelUnavailable, match="no file") as caught:
            virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB))
        assert caught.value.param == "model"

    @pytest.mark.parametrize("by_reference", [True, False])
    def test_any_other_failure_is_an_engine_error_without_internal_text(
        self, by_reference: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        error = KeyError("/secret/path")
        client, _ = client_with(failing(*[as_seen_by_a_caller(error) if by_reference else error] * 2))
        with pytest.raises(EngineError, match=UNFORESEEN):
            virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB))
        assert "KeyError('/secret/path')" in caplog.text

    @pytest.mark.parametrize(
        ("statuses", "reason"),
        [
            ((), "waiting for a free CPU or GPU"),
            ((ReplicaStatus("r", "starting"),), "still being loaded"),
            ((ReplicaStatus("r", "failed", detail="no /secret/path"),), LOAD_FAILED),
            ((ReplicaStatus("r", "failed", detail="no /secret/path"), ReplicaStatus("s", "loading")), "still being loaded"),
            ((ReplicaStatus("r", "downloading", detail="downloaded 5 of 100 MB"),), "downloaded 5 of 100 MB"),
        ],
    )
    def test_a_model_that_loads_for_long_is_reported(self, statuses: tuple[ReplicaStatus, ...], reason: str) -> None:
        cancelled = False

        async def never(*_: Any) -> TokenColumns:
            nonlocal cancelled
            try:
                return await asyncio.sleep(1000, COLUMNS)
            except asyncio.CancelledError:
                cancelled = True
                raise

        async def ask() -> float:
            with pytest.raises(ModelUnavailable, match=reason):
                await client.recognise(FIRST, Lane.BULK, JOB)
            waited_s = virtual_time.now_s()
            await asyncio.sleep(1)
            return waited_s

        client, _ = client_with(never, *statuses)
        assert virtual_time.run(ask()) == pytest.approx(SETTINGS.limits.model_wait_s)
        assert cancelled

    def test_a_loaded_replica_gets_the_full_time(self) -> None:
        async def slow(*_: Any) -> TokenColumns:
            return await asyncio.sleep(40, COLUMNS)

        client, _ = client_with(slow, ReplicaStatus("r", "ready"))
        assert virtual_time.run(client.recognise(FIRST, Lane.BULK, JOB)) == TOKENS

    def test_a_job_that_has_begun_waits_until_its_model_is_loaded_again(self) -> None:
        async def slow(*_: Any) -> TokenColumns:
            return await asyncio.sleep(1000, COLUMNS)

        client, _ = client_with(slow, ReplicaStatus("r", "loading"))
        assert virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB)) == TOKENS

    @pytest.mark.parametrize("window", [FIRST, WINDOW])
    def test_a_window_whose_model_is_removed_fails(self, window: Window) -> None:
        """Its replicas may have been ready until then."""

        async def never(*_: Any) -> TokenColumns:
            return await asyncio.sleep(1000, COLUMNS)

        async def is_deployed() -> bool:
            return virtual_time.now_s() < 5

        async def ask() -> float:
            with pytest.raises(ModelUnavailable, match="was removed"):
                await client.recognise(window, Lane.BULK, JOB)
            return virtual_time.now_s()

        client, _ = client_with(never, ReplicaStatus("r", "ready"), is_deployed=is_deployed)
        assert virtual_time.run(ask()) < 5 + 2 * CHECK_S

    def test_so_does_one_that_the_router_of_serve_refuses_already(self) -> None:
        async def is_deployed() -> bool:
            return virtual_time.now_s() < 1

        client, _ = client_with(failing(*[DeploymentUnavailableError(DeploymentID("model"))] * 10), is_deployed=is_deployed)
        with pytest.raises(ModelUnavailable, match="was removed"):
            virtual_time.run(client.recognise(WINDOW, Lane.BULK, JOB))

    def test_no_delay_after_the_last_attempt(self) -> None:
        async def ask() -> float:
            with pytest.raises(EngineBroken):
                await client.recognise(WINDOW, Lane.BULK, JOB)
            return virtual_time.now_s()

        client, _ = client_with(failing(*[ActorDiedError()] * 10))
        assert virtual_time.run(ask()) == pytest.approx(RETRY_DELAY_S * (2 ** (MAX_ATTEMPTS - 1) - 1))

    @pytest.mark.parametrize(
        ("statuses", "refuses"),
        [
            ((), False),
            ((ReplicaStatus("a", "loading"),), False),
            ((ReplicaStatus("a", "ready"),), False),
            ((ReplicaStatus("a", "loading"), ReplicaStatus("b", "ready", takes_keywords=False)), True),
        ],
    )
    def test_keywords_are_refused_once_a_replica_says_so(self, statuses: tuple[ReplicaStatus, ...], refuses: bool) -> None:
        client, replicas = client_with(failing(), *statuses)
        assert client.refuses_keywords() == refuses
        client.statuses = lambda: ()  # unloaded
        assert client.refuses_keywords() == refuses
        assert replicas.calls == []

    @pytest.mark.parametrize(
        ("statuses", "windows"),
        [
            ((), 4),
            ((ReplicaStatus("a", "ready", max_batch_audio_s=60),), 4),
            ((ReplicaStatus("a", "ready", max_batch_audio_s=600),), 36),
            ((ReplicaStatus("a", "ready", max_batch_audio_s=600), ReplicaStatus("b", "ready", max_batch_audio_s=300)), 54),
            ((ReplicaStatus("a", "ready", max_batch_audio_s=600), ReplicaStatus("b", "loading")), 36),
        ],
    )
    def test_a_job_wants_two_batches_for_every_loaded_replica(self, statuses: tuple[ReplicaStatus, ...], windows: int) -> None:
        client, _ = client_with(failing(), *statuses)
        assert client.target_windows_in_flight(32.0) == windows
