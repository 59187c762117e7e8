"""Fixtures that several test modules share."""

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from serve_app.api import create_api
from serve_app.cores import usable_cores
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.jobs import service as service_module
from serve_app.jobs import transcription as transcription_module
from serve_app.jobs import worker as worker_module
from serve_app.model_source import bundled_model_path
from serve_app.window import Samples
from testing.accuracy import add_noise
from testing.digit_strings import Bank, DigitString, compose, load_bank, with_pauses
from testing.fake_service import FakeService
from testing.heads import Family, nemo_file
from testing.paths import DIGITS

SEED_VARIABLES = {
    *("TRANSCRIBE_CHUNK_LEN", "TRANSCRIBE_OVERLAP", "BATCH_SIZE", "LOG_LEVEL", "PORT", "MODELS_DIR"),
    *("CHUNK_MINITE", "IDLE_TIMEOUT_MINUTES", "ENABLE_LAZY_LOAD", "API_KEY"),
}
"""Environment variables that the settings read besides those with the prefix PARAKEET_."""

MISRECOGNISED = 13
"""Index of the string in `noisy_strings` in which the bundled model gets one word wrong."""


LANES = ("tests/server/demo/", "tests/server/")
"""Tests of running servers, by the beginning of their paths; the first that fits. Each lane goes to one worker, as servers
compete for the machine. A folder shares a server; other modules start their own."""


def lane_of(nodeid: str) -> str | None:
    return next((lane for lane in LANES if nodeid.startswith(lane)), None)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist carries no types
    """Distributes the other tests by file."""

    def _split_scope(self, nodeid: str) -> str:
        return lane_of(nodeid) or nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`. The lanes of servers leave cores idle while they wait, so that there is work for one more."""
    return usable_cores() + 1


def pytest_configure(config: pytest.Config) -> None:
    """No test may depend on the speed of the machine."""
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    return Lanes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lanes first, as they take longest."""
    order = (*LANES, None)
    items.sort(key=lambda item: order.index(lane_of(item.nodeid)))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings in the environment of the machine, which would change the results of tests."""
    for name in os.environ:
        if name.startswith("PARAKEET_") or name in SEED_VARIABLES:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def log_is_captured(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Earlier tests of this process may keep the log from pytest: Ray and Serve do not pass theirs on, and NeMo sets the level of
    every handler that its logger has, also of pytest's."""
    for name in ("ray", "ray.serve"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    caplog.handler.setLevel(logging.NOTSET)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done now and then for jobs in this process is done often, and what failed is tried again at once."""
    monkeypatch.setattr(transcription_module, "SAVE_S", 0.02)
    monkeypatch.setattr(transcription_module, "RENEW_S", 0.05)
    monkeypatch.setattr(transcription_module, "RETRY_S", 0.02)
    monkeypatch.setattr(worker_module, "RETRY_S", 0.02)
    monkeypatch.setattr(service_module, "SWEEP_S", 0.05)


@pytest.fixture(scope="session")
def bank() -> Bank:
    """The synthesised digits in the repository."""
    return load_bank(DIGITS)


@pytest.fixture(scope="session")
def strings(bank: Bank) -> list[DigitString]:
    """Twelve strings of 1 to 12 digits, in three voices."""
    rng = random.Random(7)
    voices = sorted(bank)
    return [compose(bank[voices[n % 3]], [rng.randrange(10) for _ in range(n)], rng) for n in range(1, 13)]


@pytest.fixture
def server() -> FakeService:
    """A fake service for the API. Modules that start a real server override this fixture."""
    return FakeService()


@pytest.fixture
def client(server: FakeService) -> Iterator[TestClient]:
    with TestClient(create_api(server.service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def spoken(strings: list[DigitString]) -> list[DigitString]:
    """The digit strings in `speech`."""
    return strings[2:7]


@pytest.fixture(scope="session")
def speech(spoken: list[DigitString]) -> Samples:
    """The strings of `spoken` with a pause after each, int16 [samples]."""
    return with_pauses(spoken)


@pytest.fixture(scope="session")
def noisy_strings(bank: Bank) -> list[DigitString]:
    """64 strings with white noise 6 dB above the speech. The bundled model gets one word wrong in the one at MISRECOGNISED."""
    rng, voices = random.Random(1), sorted(bank)
    strings = [compose(bank[voices[n % 3]], [rng.randrange(10) for _ in range(4 + n % 4)], rng) for n in range(64)]
    return [add_noise(string, -6, seed) for seed, string in enumerate(strings)]


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings in the environment variable FSDD_RECORDINGS. If it is not set, the test is skipped."""
    folder = os.environ.get("FSDD_RECORDINGS")
    if not folder:
        pytest.skip("FSDD_RECORDINGS does not name a folder with the Free Spoken Digit Dataset")
    return Path(folder)


@pytest.fixture(scope="session")
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """The `.nemo` file of a small model of another family than TDT; see testing/heads.py."""
    folder = tmp_path_factory.mktemp("families")
    return lambda family: nemo_file(family, folder)


@pytest.fixture(scope="session")
def engine() -> ParakeetEngine:
    """The bundled model on the CPU."""
    return ParakeetEngine.load(bundled_model_path(), device="cpu", precision="fp32")
