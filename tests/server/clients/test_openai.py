"""OpenAI's own client, sync and async, and LiteLLM against the running server; their types judge every answer."""

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.audio import (
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranslationVerbose,
)

from testing import media
from testing.digit_strings import DigitString, with_pauses
from testing.media import as_wav
from testing.openai_answers import FORMATS, plain
from testing.server import Server
from tests.conftest import MISRECOGNISED
from tests.server.clients.conftest import MAX_REQUESTS_PER_MINUTE, MAX_UPLOAD_BYTES, MODEL

pytestmark = [pytest.mark.serve, pytest.mark.slow]


@pytest.fixture
def sync(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sync", max_retries=0) as client:
        yield client


@pytest.fixture
async def asynchronous(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="async", max_retries=0) as client:
        yield client


@pytest.fixture
def spoken(strings: list[DigitString]) -> DigitString:
    return strings[9]


@pytest.fixture
def audio(spoken: DigitString) -> tuple[str, bytes]:
    return "speech.wav", as_wav(spoken)


class TestFormats:
    @pytest.mark.parametrize("response_format", FORMATS)
    def test_sync(self, sync: openai.OpenAI, audio: Any, spoken: DigitString, response_format: Any) -> None:
        answer = sync.audio.transcriptions.create(file=audio, model="whisper-1", response_format=response_format)
        FORMATS[response_format](answer, spoken)

    @pytest.mark.parametrize("response_format", FORMATS)
    async def test_async(self, asynchronous: openai.AsyncOpenAI, audio: Any, spoken: DigitString, response_format: Any) -> None:
        answer = await asynchronous.audio.transcriptions.create(file=audio, model=MODEL, response_format=response_format)
        FORMATS[response_format](answer, spoken)

    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.filterwarnings("ignore:.*translations.*:DeprecationWarning", "ignore:.*deprecated.*:DeprecationWarning")
    def test_translations(self, sync: openai.OpenAI, audio: Any, spoken: DigitString, response_format: Any) -> None:
        answer = sync.audio.translations.create(file=audio, model=MODEL, response_format=response_format)
        if response_format == "verbose_json":
            assert isinstance(answer, TranslationVerbose)
        assert plain(str(getattr(answer, "text", answer))).count("Zero") == spoken.text.count("Zero")
        assert spoken.words[-1].text in str(getattr(answer, "text", answer))

    @pytest.mark.parametrize(
        ("granularities", "has_words"), [(["segment"], False), (["word"], True), (["word", "segment"], True)]
    )
    def test_granularities(
        self, sync: openai.OpenAI, audio: Any, spoken: DigitString, granularities: Any, has_words: bool
    ) -> None:
        answer = sync.audio.transcriptions.create(
            file=audio, model=MODEL, response_format="verbose_json", timestamp_granularities=granularities
        )
        assert answer.segments
        assert bool(answer.words) is has_words
        if answer.words:
            assert [word.word for word in answer.words] == spoken.text.split()
            assert all(word.start < word.end for word in answer.words)

    def test_every_field(self, sync: openai.OpenAI, audio: Any, spoken: DigitString) -> None:
        answer = sync.audio.transcriptions.create(
            file=audio,
            model=MODEL,
            response_format="json",
            include=["logprobs"],
            keywords=["one two three"],
            languages=["en", "fr"],
            prompt="Digits are spoken.",
            temperature=0.2,
            chunking_strategy={"type": "server_vad", "silence_duration_ms": 300},
            extra_body={"user": "somebody"},
        )
        assert answer.text == spoken.text
        assert answer.logprobs is not None
        assert plain("".join(entry.token or "" for entry in answer.logprobs)) == spoken.text
        assert all(entry.logprob is not None and entry.logprob <= 0 for entry in answer.logprobs)


def test_keywords_change_what_is_heard(sync: openai.OpenAI, noisy_strings: list[DigitString]) -> None:
    spoken = noisy_strings[MISRECOGNISED]
    audio = ("speech.wav", as_wav(spoken))
    phrase = spoken.text.rstrip(".")
    assert sync.audio.transcriptions.create(file=audio, model=MODEL).text != spoken.text
    assert sync.audio.transcriptions.create(file=audio, model=MODEL, keywords=[phrase]).text == spoken.text
    listed = "Three six four, zero five"
    assert sync.audio.transcriptions.create(file=audio, model=MODEL, prompt=listed).text == spoken.text


class TestStreams:
    def test_sync(self, sync: openai.OpenAI, strings: list[DigitString]) -> None:
        audio, text = _several_sentences(strings)
        *deltas, done = sync.audio.transcriptions.create(file=audio, model=MODEL, stream=True, include=["logprobs"])
        _is_stream_of(text, deltas, done)

    async def test_async(self, asynchronous: openai.AsyncOpenAI, strings: list[DigitString]) -> None:
        audio, text = _several_sentences(strings)
        stream = await asynchronous.audio.transcriptions.create(file=audio, model=MODEL, stream=True, include=["logprobs"])
        *deltas, done = [event async for event in stream]
        _is_stream_of(text, deltas, done)


def _several_sentences(strings: list[DigitString]) -> tuple[tuple[str, bytes], str]:
    samples = with_pauses(strings[3:9])
    return ("speech.wav", media.wav(samples)), " ".join(string.text for string in strings[3:9])


def _is_stream_of(text: str, deltas: list[Any], done: Any) -> None:
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert done.text == text
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    assert all(isinstance(delta, TranscriptionTextDeltaEvent) for delta in deltas)
    assert "".join(delta.delta for delta in deltas) == text
    assert len(deltas) > 6
    assert done.logprobs is not None
    assert sum(len(delta.logprobs) for delta in deltas) == len(done.logprobs) == done.usage.output_tokens


CALLS: list[tuple[type[openai.APIStatusError], int, dict[str, Any]]] = [
    (openai.BadRequestError, 400, {"file": ("x.wav", b"no audio")}),
    (openai.BadRequestError, 400, {"file": ("x.wav", b"")}),
    (openai.BadRequestError, 400, {"file": ("x.wav", b"no audio"), "stream": True}),
    (openai.BadRequestError, 400, {"language": "fr"}),
    (openai.BadRequestError, 400, {"response_format": "diarized_json", "extra_body": {"diarize": "false"}}),
    (openai.BadRequestError, 400, {"response_format": "yaml"}),
    (openai.NotFoundError, 404, {"model": "whisper-9"}),
    (openai.APIStatusError, 413, {"file": ("x.wav", bytes(MAX_UPLOAD_BYTES + 1))}),
]


class TestErrors:
    @pytest.mark.parametrize(("kind", "status", "changes"), CALLS)
    def test_sync(self, sync: openai.OpenAI, audio: Any, kind: Any, status: int, changes: dict[str, Any]) -> None:
        with pytest.raises(kind) as caught:
            sync.audio.transcriptions.create(**({"file": audio, "model": MODEL} | changes))
        _is_openais_error(caught.value, status)

    @pytest.mark.parametrize(("kind", "status", "changes"), CALLS)
    async def test_async(
        self, asynchronous: openai.AsyncOpenAI, audio: Any, kind: Any, status: int, changes: dict[str, Any]
    ) -> None:
        with pytest.raises(kind) as caught:
            await asynchronous.audio.transcriptions.create(**({"file": audio, "model": MODEL} | changes))
        _is_openais_error(caught.value, status)

    async def test_a_wrong_key(self, sync: openai.OpenAI, asynchronous: openai.AsyncOpenAI, audio: Any) -> None:
        with pytest.raises(openai.AuthenticationError) as caught:
            sync.with_options(api_key="wrong").audio.transcriptions.create(file=audio, model=MODEL)
        _is_openais_error(caught.value, 401)
        with pytest.raises(openai.AuthenticationError):
            await asynchronous.with_options(api_key="wrong").models.list()

    def test_too_many_requests(self, server: Server, sync: openai.OpenAI, audio: Any) -> None:
        limited = sync.with_options(api_key="limited")
        headers = {"Authorization": "Bearer limited"}
        with httpx2.Client(base_url=server.url, headers=headers) as client:
            for left in reversed(range(MAX_REQUESTS_PER_MINUTE)):
                answer = client.post("/v1/audio/transcriptions", data={"model": MODEL})
                assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (400, str(left))
        with pytest.raises(openai.RateLimitError) as caught:
            limited.audio.transcriptions.create(file=audio, model=MODEL)
        _is_openais_error(caught.value, 429)
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
        assert sync.audio.transcriptions.create(file=audio, model=MODEL).text

    def test_no_such_model(self, sync: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            sync.models.retrieve("whisper-9")


def _is_openais_error(error: openai.APIStatusError, status: int) -> None:
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.code
    assert error.type
    assert error.request_id


async def test_models(sync: openai.OpenAI, asynchronous: openai.AsyncOpenAI) -> None:
    assert [model.id for model in sync.models.list()] == [MODEL, "parakeet-tdt-0.6b-v3", "digits"]
    model = await asynchronous.models.retrieve("digits")
    assert (model.id, model.object, model.owned_by) == ("digits", "model", "bundled")


def test_a_raw_answer_has_openais_headers(sync: openai.OpenAI, audio: Any) -> None:
    raw = sync.audio.transcriptions.with_raw_response.create(
        file=audio, model=MODEL, extra_headers={"x-request-id": "one-of-mine"}
    )
    assert raw.headers["x-request-id"] == "one-of-mine"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["x-ratelimit-limit-requests"] == str(MAX_REQUESTS_PER_MINUTE)


@pytest.mark.filterwarnings("ignore")
class TestLiteLlm:
    """It warns of its own code while it is imported and used."""

    @pytest.mark.parametrize("response_format", ["json", "verbose_json", "text", "srt", "vtt"])
    def test_transcription(
        self, server: Server, spoken: DigitString, response_format: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # It would ask for a list of prices in the internet.
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        file = io.BytesIO(as_wav(spoken))
        file.name = "speech.wav"
        answer = litellm.transcription(
            model=f"openai/{MODEL}",
            file=file,
            api_base=f"{server.url}/v1",
            api_key="litellm",
            response_format=response_format,
            max_retries=0,
        )
        for word in spoken.text.split():
            assert word in answer.text
