"""Preflights of browsers, in which a page asks what it may do."""

import pytest
from fastapi.testclient import TestClient

from serve_app.api import create_api
from serve_app.settings import IngressSettings
from testing.fake_service import FakeService

PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize("network", ["Private", "Local"])
@pytest.mark.parametrize(("allowed", "status"), [("*", 200), ("https://a.example", 200), ("https://b.example", 400)])
def test_a_public_page_may_use_a_server_of_the_local_network(network: str, allowed: str, status: int) -> None:
    service = FakeService(ingress=IngressSettings(cors_origins=(allowed,))).service
    with TestClient(create_api(service)) as client:
        headers = PREFLIGHT | {f"Access-Control-Request-{network}-Network": "true"}
        answer = client.options("/v1/audio/transcriptions", headers=headers)
        unasked = client.options("/v1/audio/transcriptions", headers=PREFLIGHT)
    name = f"Access-Control-Allow-{network}-Network"
    assert answer.status_code == unasked.status_code == status
    assert name not in unasked.headers
    if status == 200:
        assert answer.headers[name] == "true"
        assert answer.headers["access-control-allow-origin"] == allowed
