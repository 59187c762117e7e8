"""The OpenAPI document, and requests generated from it: every response must be one that it describes."""

from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from serve_app.api import create_api, exports
from serve_app.cluster.status import ReplicaStatus
from testing import media
from testing.fake_service import FakeService

load_all_checks()

FILES = (
    media.wav(np.random.default_rng(0).normal(0, 0.1, 8_000)),
    media.wav(np.zeros(8_000)),
    b"no media",
    b"",
)
TEXTS = {
    "model": ["", "whisper-1", "gpt-realtime", "first", "second", "none"],
    "language": ["", "en", "German", "fr", "und"],
    "prompt": ["", "Bob, Alice", "Some prose."],
    "chunking_strategy": ["auto", '{"type": "server_vad"}', '{"window_s": 10}', "{"],
    "chunking_strategy[type]": ["server_vad", "x"],
}
"""Valid and nearly valid texts, which random generation would hardly ever find."""

server = FakeService()
server.replicas["first"] = (ReplicaStatus("replica", "ready"),)


async def scrape() -> str:
    return ""


api = create_api(server.service, scrape)
schema = schemathesis.openapi.from_asgi("/openapi.json", api)


@schema.hook
def flatmap_body(context: Any, body: Any) -> st.SearchStrategy[Any]:
    """Sometimes replaces fields of a form by real files and meaningful texts."""
    if not isinstance(body, dict) or context.operation.path == exports.PATH:
        return st.just(body)
    likely = {name: st.sampled_from(values) for name, values in TEXTS.items() if name in body}
    if "file" in body:
        likely["file"] = st.sampled_from(FILES)
    return st.fixed_dictionaries({}, optional=likely).map(lambda found: body | found)


# Two checks are excluded. Requests that fit the schema may still be rejected: a file may not be audio. Some that do not fit it
# become valid as a form: an empty list is the same as no field.
@schema.parametrize()
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_generated_requests(case: Case[Any]) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance, negative_data_rejection])


def test_every_field_and_every_status_is_described() -> None:
    with TestClient(api) as client:
        described = client.get("/openapi.json").json()
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    for operation in operations:
        assert operation["description"]
        assert all(response["description"] for response in operation["responses"].values())
        assert "422" not in operation["responses"]
    forms = [form for name, form in described["components"]["schemas"].items() if name.startswith("Body_")]
    assert len(forms) == 2
    for form in forms:
        for name, field in form["properties"].items():
            assert field["description"], name
            assert "null" not in str(field)


def test_unused_schemas_are_removed() -> None:
    assert "ValidationError" not in str(api.openapi())


@pytest.mark.parametrize("method", ["DELETE", "GET"])
def test_a_wrong_method_is_answered_with_the_allowed_one(method: str) -> None:
    with TestClient(api) as client:
        answer = client.request(method, "/v1/audio/transcriptions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"
