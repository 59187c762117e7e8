"""The ingress's client of a model's replicas: sends windows, retries those lost with a replica, explains failures."""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serve_app.cluster.calls import MAX_BY_VALUE_BYTES, DeploymentHandle, answer, retried, waited
from serve_app.cluster.live_calls import LiveCalls, LiveWindow, Outcome
from serve_app.cluster.shared_audio import SentAudio, SharedAudio
from serve_app.cluster.status import ReplicaStatus
from serve_app.engine.batch_policy import expected_batch_audio_s, max_batch_windows
from serve_app.errors import AudioUnreachable, SpeechError
from serve_app.observe import catalogue, serve_log
from serve_app.observe.recorder import NO_RECORDER, Recorder
from serve_app.settings import ModelSettings, Settings
from serve_app.transcript import Token, TokenColumns
from serve_app.window import SAMPLE_RATE, Job, Lane, Samples, Window

log = logging.getLogger("ray.serve")

SETTLE_CHECKS = 4
"""After so many checks, two seconds, Serve's router knows a replica whose status says that it is loaded. What was sent again
sooner would go to the replica that it came from."""

BATCHES_PER_REPLICA = 2
"""Batches in flight per replica that keep it busy: one running, one waiting."""

BY_VALUE_S = 60.0
"""After a replica could not read the shared audio of a call, calls have their audio with them for so long, seconds."""

MIN_WINDOWS_IN_FLIGHT = 4
"""Minimum windows in flight per file, even while no replica is loaded."""


class ModelClient:
    """One per model and ingress."""

    def __init__(
        self,
        model: ModelSettings,
        settings: Settings,
        replicas: DeploymentHandle,
        statuses: Callable[[], Sequence[ReplicaStatus]],
        is_deployed: Callable[[], Awaitable[bool]],
        recorder: Recorder = NO_RECORDER,
        audio: SharedAudio | None = None,
    ) -> None:
        """`replicas`: see `by_value`. `statuses` returns the last known statuses of the model's replicas; `is_deployed` whether
        the model is part of the running application. `audio`: the memory that windows of files are in, and that those of live
        streams are copied to; None: no audio is shared with replicas."""
        self.model = model
        self.settings = settings
        self.replicas = replicas
        self.statuses = statuses
        self.is_deployed = is_deployed
        self.recorder = recorder
        self._audio = audio
        self._by_value_until_s = -math.inf
        """Until then no audio is shared, seconds of the event loop's clock."""
        self._refuses_keywords = False
        for metric in (catalogue.WINDOWS_RETRIED, catalogue.GAPS_REDECODED):
            recorder.record(metric, 0, model.name)
        batching = settings.batching
        max_samples = min(round(expected_batch_audio_s(batching, on_gpu=False) * SAMPLE_RATE), MAX_BY_VALUE_BYTES // 2)
        self._live_calls = LiveCalls(self._call_together, batching.max_batch_items, max_samples)

    def target_windows_in_flight(self, window_s: float) -> int:
        """Windows of `window_s` seconds that keep the loaded replicas busy."""
        loaded = self._loaded()
        per_batch = (max_batch_windows(self.settings.batching, window_s, replica.max_batch_audio_s) for replica in loaded)
        return max(MIN_WINDOWS_IN_FLIGHT, BATCHES_PER_REPLICA * sum(per_batch))

    def _loaded(self) -> list[ReplicaStatus]:
        return [replica for replica in self.statuses() if replica.state == "ready"]

    def refuses_keywords(self) -> bool:
        """Whether a replica has reported that the model takes no keywords. That holds when the replica is gone, too."""
        self._refuses_keywords |= any(not replica.takes_keywords for replica in self.statuses())
        return self._refuses_keywords

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        """Tokens of a window, retried when its replica is lost, and once when its recognition fails. Raises SpeechError."""

        async def attempt(number: int) -> list[Token]:
            if number == 0:
                return await self._send(window, lane, job)
            # The merge of all later windows waits for a retry, so it is urgent. This window may also have crashed the
            # replica, so it gets a batch of its own and cannot fail others.
            self.recorder.record(catalogue.WINDOWS_RETRIED, 1, self.model.name)
            return await self._send(window, min(lane, Lane.INTERACTIVE), job, is_isolated=True)

        return await retried(attempt, f"window {window.index} of {self.model.name}")

    async def _send(self, window: Window, lane: Lane, job: Job, *, is_isolated: bool = False) -> list[Token]:
        # Loaded replicas at the last checks, oldest first.
        counts = deque([len(self._loaded())] * (SETTLE_CHECKS + 1), SETTLE_CHECKS + 1)

        def is_to_be_moved() -> bool:
            """A call stays with the replica that got it. Replicas that are added get their share of those that wait."""
            before, loaded = counts[0], counts[1]
            counts.append(len(self._loaded()))
            return 0 < before < loaded and random.random() < 1 - before / loaded and lane != Lane.LIVE and not is_isolated

        # If no replica is ready `model_wait_s` after the first window was sent, the request fails. Later windows wait as long as
        # the request may take, since a replica may have to be loaded again.
        is_first = window.index == 0 and not is_isolated
        return await waited(
            lambda: self._call(window, lane, job, is_isolated),
            load_s=self.settings.limits.model_wait_s if is_first else math.inf,
            what=f"model `{self.model.name}`",
            param="model",
            statuses=self.statuses,
            is_deployed=self.is_deployed,
            is_to_be_moved=is_to_be_moved,
        )

    async def _call(self, window: Window, lane: Lane, job: Job, is_isolated: bool) -> list[Token]:
        is_small = window.samples.nbytes <= MAX_BY_VALUE_BYTES
        if lane == Lane.LIVE and is_small and not is_isolated:
            return await self._live_calls.recognise(job, window.samples, serve_log.request_id())
        replicas = self.replicas if is_small else self.replicas.options(_by_reference=True)
        columns: TokenColumns = await self._answer(
            lambda: replicas.transcribe.remote(int(lane), job, is_isolated, self._sent(window.samples))
        )
        return columns.tokens()

    async def _call_together(self, windows: Sequence[LiveWindow]) -> Sequence[Outcome]:
        # Kept until the answer, see SentAudio.
        copies = [samples if self._audio is None else self._audio.copied(samples) for _, samples, _ in windows]
        outcomes: Sequence[TokenColumns | SpeechError] = await self._answer(
            lambda: self.replicas.transcribe_live.remote(
                [(job, self._sent(copy), request_id) for (job, _, request_id), copy in zip(windows, copies, strict=True)]
            )
        )
        return [outcome if isinstance(outcome, SpeechError) else outcome.tokens() for outcome in outcomes]

    async def _answer(self, call: Callable[[], Any]) -> Any:
        """The answer to a call, which is made again with its audio where the replica cannot read that in shared memory."""
        try:
            return await answer(call(), self.model.name)
        except AudioUnreachable as error:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._by_value_until_s:
                log.warning("windows of model %s are sent with their audio for a while: %s", self.model.name, error)
            self._by_value_until_s = now_s + BY_VALUE_S
            return await answer(call(), self.model.name)

    def _sent(self, samples: Samples) -> SentAudio:
        may_share = asyncio.get_running_loop().time() >= self._by_value_until_s
        return SentAudio(samples, self._audio.place(samples) if self._audio is not None and may_share else None)
