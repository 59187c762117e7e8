"""What an entry point needs of the server: which models there are, their state, and how to have audio transcribed.

It ties the pipeline to recognisers, and does not know where those run: on replicas in a Ray cluster, or on an engine in a test.
"""

import math
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol

from serve_app.cluster.admission import Admission, Places
from serve_app.cluster.demand import DemandMeter
from serve_app.cluster.status import ModelStatus, ReplicaStatus
from serve_app.decoders.pool import DecoderPool
from serve_app.decoders.recording import Recording
from serve_app.diarizing import Diarization, Diarizer
from serve_app.errors import AudioTooLong, ModelNotFound, RequestError
from serve_app.events import Done, Event, LiveEvent
from serve_app.job_options import JobOptions as JobOptions
from serve_app.joining import Channels
from serve_app.live.endpointing import Endpointing, VoiceActivityDetector
from serve_app.live.session import LiveSession
from serve_app.observe import job_trace
from serve_app.observe.job_meter import FileMeter, JobMeter, StreamMeter
from serve_app.observe.job_trace import JobTrace
from serve_app.observe.recorder import NO_RECORDER, Recorder
from serve_app.observe.tracing import Tracer
from serve_app.pipeline import Commit, transcribe, transcribe_live
from serve_app.settings import ModelSettings, Settings
from serve_app.transcript import Token, Transcript
from serve_app.window import SAMPLE_RATE, Job, Lane, Samples, Window


class Recogniser(Protocol):
    """How the windows of one model are recognised."""

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        """Tokens of one window of the recording `job`, with times in samples from the window's start. Raises SpeechError."""
        ...

    def target_windows_in_flight(self, window_s: float) -> int:
        """Windows of `window_s` seconds that keep the model's replicas busy."""
        ...

    def refuses_keywords(self) -> bool:
        """Whether it is known that the model takes no keywords; false until it is loaded."""
        ...


class KnownWindows(Protocol):
    """Windows of a recording whose tokens are known from earlier work."""

    def find(self, window: Window) -> list[Token] | None:
        """The tokens of a window, with times from its start, if it is known."""
        ...

    def add(self, window: Window, tokens: Sequence[Token]) -> None:
        """Know this window from here on."""
        ...


class SpeechService:
    """One per ingress process.

    `recognisers` are by model name, `diarizers` by theirs; `statuses` returns the replicas by both; `new_detector` makes the VAD
    of a new stream; `decoders` decode files; `recorder` takes the metrics, `tracer` the traces, if any are wanted.
    """

    def __init__(
        self,
        settings: Settings,
        recognisers: Mapping[str, Recogniser],
        statuses: Callable[[], Awaitable[Mapping[str, tuple[ReplicaStatus, ...]]]],
        new_detector: Callable[[Endpointing], VoiceActivityDetector],
        decoders: DecoderPool,
        recorder: Recorder = NO_RECORDER,
        tracer: Tracer | None = None,
        *,
        diarizers: Mapping[str, Diarizer] = {},
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.tracer = tracer
        self.decoders = decoders
        limits, live = settings.limits, settings.live
        self.admission = Admission(
            limits.max_requests,
            limits.max_windows_in_flight,
            streams=Places(live.max_streams, live.max_streams_per_address, "streams"),
            waiting=Places(live.max_waiting, live.max_waiting_per_address),
        )
        self.demand = DemandMeter(limits.max_audio_s)
        self._new_detector = new_detector
        self._recognisers = recognisers
        self._diarizers = diarizers
        self._statuses = statuses

    def find_model(self, name: str | None) -> ModelSettings:
        """The model of that name or alias; the default model for no name. Raises ModelNotFound."""
        models = {model.name: model for model in self.settings.models}
        wanted = name
        if name and name not in models:
            aliases = self.settings.model_aliases.items()
            wanted = next((target for alias, target in aliases if fnmatchcase(name, alias)), name)
        model = models.get(wanted or self.settings.default_model_name)
        if model is None:
            known = ", ".join(models)
            raise ModelNotFound(f"The model `{name}` does not exist. Models of this server: {known}.", param="model")
        return model

    def find_diarizer(self, name: str | None, param: str = "diarize") -> str:
        """The name of that diarizer, or of the first one. Raises RequestError. `param`: the field that asks for one."""
        names = [diarizer.name for diarizer in self.settings.diarizers]
        if not names:
            raise RequestError("This server identifies no speakers: its settings name no `diarizers`.", param=param)
        if name and name not in names:
            raise RequestError(f"There is no diarizer `{name}`, only {', '.join(names)}.", param="diarizer")
        return name or names[0]

    def refuses_keywords(self, model: ModelSettings) -> bool:
        """Whether it is known, without loading the model, that it takes no keywords. Until it is known, windows with keywords are
        sent, and such a model's replica refuses them."""
        return model.decoder == "ctc" or self._recognisers[model.name].refuses_keywords()

    async def statuses(self) -> tuple[list[ModelStatus], list[ModelStatus]]:
        """Every configured model, and every diarizer, in the order of the settings."""
        replicas = await self._statuses()
        models = [ModelStatus(model, replicas.get(model.name, ())) for model in self.settings.models]
        return models, [ModelStatus(each, replicas.get(each.name, ())) for each in self.settings.diarizers]

    async def model_statuses(self) -> list[ModelStatus]:
        """Every configured model, in the order of the settings."""
        models, _ = await self.statuses()
        return models

    async def transcribe_events(
        self,
        recording: Recording,
        model: ModelSettings,
        options: JobOptions | None = None,
        known: KnownWindows | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The pipeline's events for one file. Raises SpeechError.

        The first window has priority over the rest, so that a short file overtakes long ones. No window of `known` is decoded
        again.
        """
        options = options or JobOptions()
        recogniser, job = self._recognisers[model.name], Job(uuid.uuid4().hex, options.keywords)
        cut = options.windows or self.settings.windows_for(model)
        urgent = Lane.BULK if options.is_background else Lane.INTERACTIVE
        meter = FileMeter(self.recorder, model.name, options.entry_point, first_lane=urgent)
        trace = job_trace.of_file(model.name, options.entry_point)

        async def recognise(window: Window) -> list[Token]:
            lane = urgent if window.index == 0 or window.is_retry else Lane.BULK
            meter.received(window.end_sample / SAMPLE_RATE, lane)
            demand.planned(window.end_sample / SAMPLE_RATE, recording.expected_s, max(1, len(recording.channels)))
            if known is not None and (tokens := known.find(window)) is not None:
                return tokens
            tokens = await _recognise(recogniser, window, lane, job, meter, trace)
            if known is not None:
                known.add(window, tokens)
            return tokens

        def max_in_flight() -> int:
            admission = self.admission
            share = admission.windows_per_background_job if options.is_background else admission.windows_per_job
            return min(recogniser.target_windows_in_flight(cut.window_s), share)

        channels = None
        if recording.is_multichannel:
            drops_crosstalk = options.drops_crosstalk
            if drops_crosstalk is None:
                drops_crosstalk = self.settings.channels.drop_crosstalk
            channels = Channels(lambda: len(recording.channels), drops_crosstalk)
        with self.admission.job(is_background=options.is_background), self.demand.file(model.name) as demand:
            windows = _limited(recording.windows(cut.window_s, cut.overlap_s), self.settings.limits.max_audio_s)
            diarization = None
            if (speakers := options.speakers) is not None:
                traced = nullcontext if trace is None else trace.diarizing
                diarization = Diarization(self._diarizers[speakers.diarizer], speakers, traced)
                windows = diarization.tapped(windows)
            flow = transcribe(
                windows if trace is None else trace.decoding(windows),
                recognise,
                overlap_s=cut.overlap_s,
                max_in_flight=max_in_flight,
                channels=channels,
            )
            if diarization is not None:
                flow = diarization.joined(flow)
            async with aclosing(flow):
                async for event in flow:
                    meter.take(event)
                    demand.take(event)
                    if trace is not None:
                        trace.take(event)
                    yield event

    async def transcribe_file(self, recording: Recording, model: ModelSettings, options: JobOptions | None = None) -> Transcript:
        """The whole transcript of one file. Raises SpeechError."""
        options = options or JobOptions()
        async with aclosing(self.transcribe_events(recording, model, options)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return options.transcript(event, recording.warnings, model, recording.channels)
        raise AssertionError("the pipeline ends with Done")

    async def transcribe_stream(
        self,
        audio: AsyncGenerator[Samples | Commit, None],
        model: ModelSettings,
        options: JobOptions,
        *,
        endpointing: Endpointing | None = None,
        right_context_scale: float = 1.0,
    ) -> AsyncGenerator[LiveEvent, None]:
        """The pipeline's events for a live stream. Raises SpeechError.

        `endpointing`: None as the settings say. `right_context_scale` multiplies the settings' `right_s`: with less right
        context, words are final sooner and less accurate.
        """
        recogniser, job, live = self._recognisers[model.name], Job(uuid.uuid4().hex, options.keywords), self.settings.live
        endpointing = endpointing or Endpointing(live.endpoint_s)
        windows = live.windows.scaled(right_context_scale)
        session = LiveSession(windows, pauses_end=math.isfinite(endpointing.silence_s))
        meter = StreamMeter(self.recorder, model.name, options.entry_point)

        async def recognise(window: Window) -> list[Token]:
            meter.count_received()
            demand.decodes(window, is_active=session.is_active)
            return await _recognise(recogniser, window, Lane.LIVE, job, meter, trace)

        with self.demand.stream(model.name, windows) as demand, job_trace.of_stream(model.name, options.entry_point) as trace:
            flow = transcribe_live(
                _metered(audio, meter),
                recognise,
                self._new_detector(endpointing),
                session,
                max_backlog=round(live.max_backlog_s * SAMPLE_RATE),
            )
            async with aclosing(flow):
                async for event in flow:
                    meter.take(event)
                    if trace is not None:
                        trace.take(event)
                    yield event


async def _recognise(
    recogniser: Recogniser, window: Window, lane: Lane, job: Job, meter: JobMeter, trace: JobTrace | None
) -> list[Token]:
    """Tokens of one window. Silence needs no model.

    The very first window is sent all the same: it finds out whether the model is available, and waits until it is loaded.
    """
    if (window.index > 0 or window.channel > 0) and not window.samples.any():
        return []
    if trace is None:
        tokens = await recogniser.recognise(window, lane, job)
    else:
        with trace.recognising(window, lane) as context:
            tokens = await recogniser.recognise(window, lane, replace(job, trace=context))
    meter.decoded(window, lane)
    return tokens


async def _metered(audio: AsyncGenerator[Samples | Commit, None], meter: StreamMeter) -> AsyncGenerator[Samples | Commit, None]:
    """The same audio; its arrival is noted."""
    async with aclosing(audio):
        async for item in audio:
            if not isinstance(item, Commit):
                meter.arrived(len(item) / SAMPLE_RATE)
            yield item


async def _limited(windows: AsyncGenerator[Window, None], max_audio_s: float) -> AsyncGenerator[Window, None]:
    """The same windows; raises AudioTooLong once they exceed `max_audio_s`."""
    async with aclosing(windows):
        async for window in windows:
            if window.end_sample > max_audio_s * SAMPLE_RATE:
                raise AudioTooLong(f"The audio is longer than the {max_audio_s:.0f} s that this server accepts.", param="file")
            yield window
