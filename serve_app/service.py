"""What an entry point needs to know of the server: which models there are, how they fare, and how to have audio transcribed.

It ties the pipeline to recognisers without knowing where those run: replicas in a Ray cluster, or an engine in a test.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from serve_app.audio import AudioFile
from serve_app.errors import ModelNotFound
from serve_app.pipeline import Done, Event, transcribe
from serve_app.settings import ModelSettings, Settings
from serve_app.transcript import Lane, Token, Transcript, Window

ModelState = Literal["unloaded", "starting", "downloading", "loading", "ready", "failed"]

RecogniseInLane = Callable[[Window, Lane], Awaitable[list[Token]]]

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


class SpeechService:
    """One per ingress process. `recognisers` are by model name; `statuses` tells the replicas by model name."""

    def __init__(
        self,
        settings: Settings,
        recognisers: Mapping[str, RecogniseInLane],
        statuses: Callable[[], Awaitable[Mapping[str, tuple[ReplicaStatus, ...]]]],
    ) -> None:
        self.settings = settings
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

    async def transcribe_events(self, audio: AudioFile, model: ModelSettings) -> AsyncGenerator[Event, None]:
        """The pipeline's events for one file. The first window goes ahead of the rest, so that a short file overtakes long
        ones."""
        recognise = self._recognisers[model.name]

        async def in_lane(window: Window) -> list[Token]:
            return await recognise(window, Lane.INTERACTIVE if window.index == 0 else Lane.BULK)

        windows, limits = self.settings.windows, self.settings.limits
        flow = transcribe(
            audio.stream(),
            in_lane,
            window_s=windows.window_s,
            overlap_s=windows.overlap_s,
            max_in_flight=limits.max_windows_in_flight,
        )
        async with aclosing(flow):
            async for event in flow:
                yield event

    async def transcribe_file(self, audio: AudioFile, model: ModelSettings) -> Transcript:
        """The whole transcript of one file."""
        async with aclosing(self.transcribe_events(audio, model)) as events:
            async for event in events:
                if isinstance(event, Done):
                    language = model.languages[0] if len(model.languages) == 1 else "unknown"
                    return Transcript(event.segments, event.duration_s, model.name, language, audio.warnings)
        raise AssertionError("the pipeline ends with Done")
