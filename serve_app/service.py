"""What an entry point needs to know of the server: which models there are, how they fare, and how to have audio transcribed.

It ties the pipeline to recognisers without knowing where those run: replicas in a Ray cluster, or an engine in a test.
"""

import math
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol

from serve_app.admission import Admission
from serve_app.audio import AudioFile
from serve_app.errors import AudioTooLong, ModelNotFound
from serve_app.pipeline import Done, EndUtterance, Event, LiveEvent, transcribe, transcribe_live
from serve_app.settings import ModelSettings, Settings, WindowSettings
from serve_app.transcript import SAMPLE_RATE, Job, Keywords, Lane, Samples, Token, Transcript, Window
from serve_app.voice import Endpointing, Voice

ModelState = Literal["unloaded", "starting", "downloading", "loading", "ready", "failed"]

OPENAI_MODEL_ALIASES = frozenset({"", "whisper-1"})
"""Names that mean the default model, so that clients written for OpenAI work unchanged."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What one replica last said of itself."""

    replica_id: str
    state: ModelState
    device: str = ""
    precision: str = ""
    decoder: str = ""
    detail: str = ""
    """Progress of a download, or why the model could not be had."""
    batches: int = 0
    windows: int = 0
    largest_batch: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A configured model and its replicas."""

    model: ModelSettings
    replicas: tuple[ReplicaStatus, ...]

    @property
    def state(self) -> ModelState:
        """The best state that any replica has; `unloaded` without replicas."""
        states = {replica.state for replica in self.replicas}
        ranked: tuple[ModelState, ...] = ("ready", "loading", "downloading", "starting", "failed")
        return next((state for state in ranked if state in states), "unloaded")

    @property
    def detail(self) -> str:
        return next((replica.detail for replica in self.replicas if replica.state == self.state), "")

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served: loaded, or free to load when asked."""
        return self.state == "ready" or self.model.min_replicas == 0


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a request may ask for besides a model."""

    windows: WindowSettings | None = None
    """How the recording is cut; None as the model's settings say."""
    keywords: Keywords = ()
    language: str | None = None
    """ISO 639-1 code of what is spoken, where that is certain."""

    def transcript(self, done: Done, warnings: tuple[str, ...], model: ModelSettings) -> Transcript:
        """What came out, once all is done."""
        return Transcript(done.segments, done.duration_s, model.name, self.language or "unknown", warnings)


class Recogniser(Protocol):
    """How the windows of one model are recognised."""

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        """Tokens of one window of the recording `job`, with times in samples from the window's start."""
        ...

    def windows_wanted(self, window_s: float) -> int:
        """Windows of that length that keep the model's replicas busy."""
        ...


class SpeechService:
    """One per ingress process. `recognisers` are by model name; `statuses` tells the replicas by model name; `follow_voice` gives
    the voice of a new stream."""

    def __init__(
        self,
        settings: Settings,
        recognisers: Mapping[str, Recogniser],
        statuses: Callable[[], Awaitable[Mapping[str, tuple[ReplicaStatus, ...]]]],
        follow_voice: Callable[[Endpointing], Voice],
    ) -> None:
        self.settings = settings
        limits = settings.limits
        self.admission = Admission(limits.max_requests, limits.max_windows_in_flight, settings.live.max_streams)
        self._follow_voice = follow_voice
        self._recognisers = recognisers
        self._statuses = statuses

    def find_model(self, name: str | None) -> ModelSettings:
        """The model of that name, or the default for none and for OpenAI's; raises ModelNotFound."""
        wanted = self.settings.default_model_name if (name or "") in OPENAI_MODEL_ALIASES else name
        for model in self.settings.models:
            if model.name == wanted:
                return model
        known = ", ".join(model.name for model in self.settings.models)
        raise ModelNotFound(f"The model `{name}` does not exist. Models of this server: {known}.", param="model")

    async def model_statuses(self) -> list[ModelStatus]:
        replicas = await self._statuses()
        return [ModelStatus(model, replicas.get(model.name, ())) for model in self.settings.models]

    async def transcribe_events(
        self, audio: AudioFile, model: ModelSettings, options: JobOptions | None = None
    ) -> AsyncGenerator[Event, None]:
        """The pipeline's events for one file. Raises SpeechError.

        The first window goes ahead of the rest, so that a short file overtakes long ones.
        """
        options = options or JobOptions()
        recogniser, job = self._recognisers[model.name], Job(uuid.uuid4().hex, options.keywords)
        windows = options.windows or self.settings.windows_for(model)

        async def in_lane(window: Window) -> list[Token]:
            # The first window is sent all the same: it is what finds out whether the model can be had, and waits for it.
            if window.index > 0 and not window.samples.any():
                return []
            lane = Lane.INTERACTIVE if window.index == 0 or window.is_urgent else Lane.BULK
            return await recogniser.recognise(window, lane, job)

        with self.admission.job():
            flow = transcribe(
                _limited(audio.stream(), self.settings.limits.max_audio_s),
                in_lane,
                window_s=windows.window_s,
                overlap_s=windows.overlap_s,
                max_in_flight=lambda: min(recogniser.windows_wanted(windows.window_s), self.admission.windows_per_job),
            )
            async with aclosing(flow):
                async for event in flow:
                    yield event

    async def transcribe_file(self, audio: AudioFile, model: ModelSettings, options: JobOptions | None = None) -> Transcript:
        """The whole transcript of one file."""
        options = options or JobOptions()
        async with aclosing(self.transcribe_events(audio, model, options)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return options.transcript(event, audio.warnings, model)
        raise AssertionError("the pipeline ends with Done")

    async def transcribe_stream(
        self,
        audio: AsyncGenerator[Samples | EndUtterance, None],
        model: ModelSettings,
        options: JobOptions,
        *,
        endpointing: Endpointing | None = None,
        patience: float = 1.0,
    ) -> AsyncGenerator[LiveEvent, None]:
        """The events of speech that is still being spoken. Raises SpeechError.

        None ends utterances as the settings say. `patience` is how much of the settings' `right_s` is heard before a word is
        final: with less, text is final sooner and is less certain.
        """
        recogniser, job, live = self._recognisers[model.name], Job(uuid.uuid4().hex, options.keywords), self.settings.live
        endpointing = endpointing or Endpointing(live.endpoint_s)
        flow = transcribe_live(
            audio,
            lambda window: recogniser.recognise(window, Lane.LIVE, job),
            self._follow_voice(endpointing),
            live.windows.with_patience(patience),
            max_backlog=round(live.max_backlog_s * SAMPLE_RATE),
            pauses_end=math.isfinite(endpointing.silence_s),
        )
        async with aclosing(flow):
            async for event in flow:
                yield event


async def _limited(blocks: AsyncGenerator[Samples, None], max_audio_s: float) -> AsyncGenerator[Samples, None]:
    """The same blocks; raises AudioTooLong once they are more than that."""
    samples = 0
    async with aclosing(blocks):
        async for block in blocks:
            samples += len(block)
            if samples > max_audio_s * SAMPLE_RATE:
                raise AudioTooLong(f"The audio is longer than the {max_audio_s:.0f} s that this server accepts.", param="file")
            yield block
