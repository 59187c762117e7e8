"""Which model a request gets, and what is known about it; what its jobs still need."""

import asyncio
import io
from collections.abc import AsyncGenerator, Mapping

import numpy as np
import pytest

from serve_app.cluster.demand import Demand
from serve_app.cluster.status import ReplicaStatus
from serve_app.errors import EngineError, ModelNotFound
from serve_app.pipeline import Commit
from serve_app.service import JobOptions
from serve_app.settings import ModelSettings
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.fake_service import FakeService
from testing.open_requests import until

OPENAI_NAMES = (
    *("whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-mini-transcribe-2025-12-15"),
    *("gpt-4o-transcribe-latest", "gpt-4o-transcribe-diarize", "gpt-live-transcribe", "gpt-realtime", "gpt-realtime-2025-08-28"),
    *("gpt-realtime-mini", "gpt-realtime-whisper", "gpt-4o-realtime-preview", "gpt-4o-mini-realtime-preview-2024-12-17"),
)


def found(name: str | None, aliases: Mapping[str, str] | None = None) -> str:
    settings = {} if aliases is None else {"model_aliases": aliases}
    return FakeService(**settings).service.find_model(name).name


@pytest.mark.parametrize("name", [None, "", "first", *OPENAI_NAMES])
def test_openais_names_mean_the_default_model(name: str | None) -> None:
    assert found(name) == "first"


@pytest.mark.parametrize("name", ["gpt-4o", "whisper-2", "Whisper-1", "my-gpt-realtime", "*"])
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(ModelNotFound, match="Models of this server: first, second"):
        found(name)


def test_aliases() -> None:
    aliases = {"whisper-large": "second", "whisper-*": "", "first": "second"}
    assert found("whisper-large", aliases) == "second"
    assert found("whisper-small", aliases) == "first"
    assert found("first", aliases) == "first", "a model of that name has precedence"
    assert found(None, {"*": "second"}) == "first"
    with pytest.raises(ModelNotFound):
        found("gpt-4o-transcribe", aliases)


@pytest.mark.parametrize("name", OPENAI_NAMES)
def test_a_configured_model_with_one_of_openais_names(name: str) -> None:
    server = FakeService()
    model = ModelSettings(name=name, source="bundled")
    service = server.service
    service.settings = service.settings.model_copy(update={"models": (*service.settings.models, model)})
    assert service.find_model(name) is model


def test_which_models_are_known_to_take_no_keywords() -> None:
    server = FakeService()
    model, ctc = server.service.find_model("second"), ModelSettings(name="second", source="nvidia/second", decoder="ctc")
    assert not server.service.refuses_keywords(model)
    assert server.service.refuses_keywords(ctc), "before it is loaded"
    server.replicas["second"] = (ReplicaStatus("a", "ready", takes_keywords=False),)
    assert server.service.refuses_keywords(model)


FILE_S = 200


def noise(seconds: float) -> Samples:
    return np.random.default_rng(0).integers(-9000, 9000, round(seconds * SAMPLE_RATE), dtype=np.int16)


async def test_a_file_in_progress_needs_all_of_its_audio_from_the_first_window_on() -> None:
    server = FakeService()
    service, model = server.service, server.service.find_model(None)
    server.hold.clear()
    recording = service.decoders.open(io.BytesIO(media.wav(noise(FILE_S))))
    job = asyncio.create_task(service.transcribe_file(recording, model))
    await until(lambda: len(server.windows) >= 2)
    assert service.demand.of("first").remaining_s == pytest.approx(FILE_S)
    assert service.demand.of("second") == Demand()
    server.hold.set()
    await job
    assert service.demand.of("first") == Demand()


async def test_a_file_that_fails_needs_nothing() -> None:
    server = FakeService()
    server.failure = EngineError("it is broken")
    service = server.service
    with pytest.raises(EngineError):
        await service.transcribe_file(service.decoders.open(io.BytesIO(media.wav(noise(5)))), service.find_model(None))
    assert service.demand.of("first") == Demand()


async def test_a_stream_needs_its_windows_decoded() -> None:
    server = FakeService()
    service = server.service

    async def audio() -> AsyncGenerator[Samples | Commit, None]:
        yield noise(6)

    events = service.transcribe_stream(audio(), service.find_model(None), JobOptions())
    async for _ in events:
        pass
    assert server.windows
    assert service.demand.of("first").live_load > 0
    assert service.demand.of("first").remaining_s == 0
