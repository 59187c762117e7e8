"""configs/serve_config.yaml: models that load on demand, from a hub that is unreachable, faulty, slow, and well.

And one more whose file fails at every window.
"""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from serve_app.model_source import bundled_model_path
from serve_app.replica import LOAD_RETRY_S
from testing.digit_strings import DigitString
from testing.failing_model import write_failing_model
from testing.fake_hub import FakeHub
from testing.media import as_wav
from testing.paths import ROOT
from testing.server import START_S, Server, free_port, serve_run

pytestmark = [pytest.mark.serve, pytest.mark.slow]

CONFIG = ROOT / "configs" / "serve_config.yaml"
HUB_MODEL = "parakeet-tdt-0.6b-v2"
FAILING_MODEL = "failing"
DOWNLOAD_S = 15


@pytest.fixture(scope="module")
def hub_port() -> int:
    """Nothing listens there until a test starts a hub."""
    return free_port()


@pytest.fixture(scope="module")
def failing_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "failing.nemo"
    write_failing_model(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hub_port: int, failing_path: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("default")
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{hub_port}", "HF_HOME": str(folder / "hub")}
    models = yaml.safe_load(CONFIG.read_text())["applications"][0]["args"]["models"]
    brief = [model | ({"idle_unload_s": 2} if model["name"] == "digits" else {}) for model in models]
    failing = {"name": FAILING_MODEL, "source": str(failing_path)}
    # No answer may take longer than `model_wait_s` for want of a model.
    with serve_run(CONFIG, folder, env=env, args={"models": [*brief, failing], "limits": {"model_wait_s": 4}}) as server:
        yield server


def ask_while(server: Server, text: str, data: bytes, **fields: Any) -> httpx2.Response:
    """The first response that is not a 503 with `text` in its message."""
    until = time.monotonic() + START_S
    while True:
        response = server.transcribe(data, **fields)
        if response.status_code != 503 or text not in response.json()["error"]["message"]:
            return response
        assert time.monotonic() < until, response.text


@pytest.fixture(scope="module")
def digits_text(server: Server, strings: list[DigitString]) -> str:
    """What the model that loads on demand, and is soon idle, says to strings[3]."""
    text: str = ask_while(server, "not loaded yet", as_wav(strings[3]), model="digits").json()["text"]
    return text


def test_it_is_ready_with_nothing_loaded(server: Server) -> None:
    body = server.client.get("/ready").json()
    assert body["ready"] is True
    assert {m["id"]: m["state"] for m in body["models"]} == {
        "parakeet-tdt-0.6b-v2": "unloaded",
        "parakeet-tdt-0.6b-v3": "unloaded",
        "digits": "unloaded",
        FAILING_MODEL: "unloaded",
    }


def test_an_unavailable_model_is_503_with_the_reason(server: Server, strings: list[DigitString], hub_port: int) -> None:
    for _ in range(2):
        response = ask_while(server, "not loaded yet", as_wav(strings[0]))
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        error = response.json()["error"]
        assert error["code"] == "model_unavailable"
        assert HUB_MODEL in error["message"]
        assert "could not be loaded" in error["message"]
        assert f"127.0.0.1:{hub_port}" not in error["message"]
    assert f"127.0.0.1:{hub_port}" in server.wait_for_state(HUB_MODEL, "failed")["detail"]


def test_the_other_models_are_served(digits_text: str, strings: list[DigitString]) -> None:
    assert digits_text == strings[3].text


def test_a_hub_without_the_model_then_broken_then_slow(server: Server, strings: list[DigitString], hub_port: int) -> None:
    """In full, against a hub that serves the bundled model under a Parakeet's name."""
    audio = as_wav(strings[3])
    with FakeHub(bundled_model_path(), "no repository", port=hub_port) as hub:
        time.sleep(LOAD_RETRY_S)
        assert server.transcribe(audio).status_code == 503
        wait_for_failure(server, "has no model")

        # A download that breaks off after some bytes is resumed (tests/engine/test_model_files.py).
        hub.mode, hub.limit_bytes = "breaking", 0
        time.sleep(LOAD_RETRY_S)
        assert server.transcribe(audio).status_code == 503
        wait_for_failure(server, "Check network")

        hub.mode, hub.bytes_per_s = "slow", len(hub.content) // DOWNLOAD_S
        time.sleep(LOAD_RETRY_S)
        with ThreadPoolExecutor(1) as other_client:
            other_client.submit(server.transcribe, audio)
            assert "MB" in server.wait_for_state(HUB_MODEL, "downloading")["detail"]
        waiting = server.transcribe(audio)
        assert waiting.status_code == 503
        assert "downloaded" in waiting.json()["error"]["message"]
        assert "downloaded" in server.log

        assert server.wait_for_state(HUB_MODEL, "ready")["device"] == "cpu"
        served = server.transcribe(audio)
        assert (served.status_code, served.json()["text"]) == (200, strings[3].text)


def wait_for_failure(server: Server, detail: str) -> None:
    """Wait until the model has failed for that reason, not for an earlier one."""
    until = time.monotonic() + START_S
    while detail not in (model := server.wait_for_state(HUB_MODEL, "failed"))["detail"]:
        assert time.monotonic() < until, model
        time.sleep(0.2)


@pytest.mark.usefixtures("digits_text")
def test_an_idle_model_is_unloaded_and_loads_again(server: Server, strings: list[DigitString]) -> None:
    """Asking /ready all the while must not keep it loaded."""
    server.wait_for_state("digits", "unloaded")
    response = ask_while(server, "not loaded yet", as_wav(strings[4]), model="digits")
    assert response.json()["text"] == strings[4].text


def test_a_model_that_cannot_recognise_anything_is_not_loaded(
    server: Server, strings: list[DigitString], failing_path: Path
) -> None:
    """The next request after a while tries again, with a file that has been mended."""
    audio = as_wav(strings[3])
    failed = ask_while(server, "not loaded yet", audio, model=FAILING_MODEL)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "model_unavailable")
    assert "could not be loaded" in failed.json()["error"]["message"]
    assert server.model(FAILING_MODEL)["state"] == "failed"
    assert "Error" in server.model(FAILING_MODEL)["detail"]
    mended = failing_path.with_suffix(".mended")
    shutil.copy(bundled_model_path(), mended)
    mended.replace(failing_path)
    time.sleep(LOAD_RETRY_S)
    answer = ask_while(server, "not loaded yet", audio, model=FAILING_MODEL)
    assert (answer.status_code, answer.json().get("text")) == (200, strings[3].text)
