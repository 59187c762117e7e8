"""deploy/compose.yaml passes every setting on, and gives the server what the image needs."""

import re
from typing import Any

import pytest
import yaml

from serve_app import run
from serve_app.app import DRAIN_S
from testing.paths import ROOT
from tests.conftest import SEED_VARIABLES
from tools import settings_table

PATH = ROOT / "deploy" / "compose.yaml"
SERVICES: dict[str, Any] = yaml.safe_load(PATH.read_text())["services"]
SETTINGS = {f"PARAKEET_{path.replace('[]', '').replace('.', '__').upper()}" for path, _ in settings_table.leaves()}
OF_LIBRARIES = {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"}
OF_THE_IMAGE = {"MODELS_DIR"}
"""Where the volume is: a path in the container."""


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    service: dict[str, Any] = SERVICES[request.param]
    return service


def test_a_file_beside_it_may_set_everything(service: dict[str, Any]) -> None:
    assert service["env_file"] == [{"path": ".env", "required": False}]
    assert len(SETTINGS) > 80


def test_nothing_overrides_what_is_set(service: dict[str, Any]) -> None:
    """Compose reads the same file for `${NAME}` and for a name without a value, and the shell before it."""
    for name, value in service["environment"].items():
        assert value is None or re.fullmatch(rf"\$\{{{name}:-[^}}]*\}}", str(value)), name


def test_the_shell_may_set_what_has_no_prefix(service: dict[str, Any]) -> None:
    assert set(service["environment"]) >= (SEED_VARIABLES | OF_LIBRARIES) - OF_THE_IMAGE
    prefixed = {name for name in service["environment"] if name.startswith("PARAKEET_")}
    assert prefixed <= SETTINGS | {"PARAKEET_MODELS"}


def test_the_comment_names_what_it_passes_on(service: dict[str, Any]) -> None:
    text = PATH.read_text()
    for name in service["environment"]:
        assert text.count(name) >= 2 or name in SEED_VARIABLES | {"LOG_LEVEL", "PARAKEET_DEFAULT_MODEL"}, name


def test_requests_in_progress_have_their_time(service: dict[str, Any]) -> None:
    assert 60 * int(service["stop_grace_period"].removesuffix("m")) > DRAIN_S + run.SHUT_DOWN_S


def test_the_object_store_fits(service: dict[str, Any]) -> None:
    (limit,) = re.findall(r"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=(\d+)", (ROOT / "Dockerfile").read_text())
    assert int(service["shm_size"].removesuffix("gb")) * 1_000_000_000 > int(limit)
