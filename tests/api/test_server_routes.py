"""Models, health, readiness, and the OpenAPI document."""

from fastapi.testclient import TestClient

from serve_app.cluster.status import ReplicaStatus
from testing.fake_service import FakeService, assert_error


def test_models(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [(m["id"], m["object"], m["owned_by"]) for m in body["data"]] == [
        ("first", "model", "simulated"),
        ("second", "model", "nvidia/second"),
    ]


def test_one_model(client: TestClient) -> None:
    assert client.get("/v1/models/second").json()["id"] == "second"
    assert client.get("/v1/models/whisper-1").json()["id"] == "first"
    assert_error(client.get("/v1/models/third"), 404, "model_not_found", "model")


def test_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_not_ready_until_the_model_with_min_replicas_is_loaded(client: TestClient, server: FakeService) -> None:
    response = client.get("/ready")
    assert response.status_code == 503
    assert [(m["id"], m["state"]) for m in response.json()["models"]] == [("first", "unloaded"), ("second", "unloaded")]
    server.replicas["first"] = (
        ReplicaStatus("r1", "failed", detail="no file"),
        ReplicaStatus(
            "r2",
            "ready",
            device="cuda",
            precision="bf16",
            decoder="cuda graphs",
            fast_paths=("convolution",),
            fast_paths_left_out=("attention: no",),
            batches=3,
            windows=9,
        ),
    )
    response = client.get("/ready")
    assert response.status_code == 200
    model = response.json()["models"][0]
    assert (model["state"], model["device"], model["precision"]) == ("ready", "cuda", "bf16")
    replica = model["replicas"][1]
    assert replica["windows"] == 9
    assert (replica["fast_paths"], replica["fast_paths_left_out"]) == (["convolution"], ["attention: no"])


def test_the_progress_of_a_download_is_shown(client: TestClient, server: FakeService) -> None:
    server.replicas["second"] = (ReplicaStatus("r", "downloading", detail="downloaded 20 of 2400 MB"),)
    model = client.get("/ready").json()["models"][1]
    assert (model["state"], model["detail"]) == ("downloading", "downloaded 20 of 2400 MB")


def test_the_openapi_document_describes_every_field(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    (form,) = (s for name, s in schema["components"]["schemas"].items() if name.startswith("Body_transcribe"))
    fields = {"file", "model", "response_format", "timestamp_granularities[]", "chunking_strategy", "stream"}
    fields |= {"language", "languages[]", "keywords[]", "prompt", "temperature", "include[]"}
    fields |= {"track", "max_lines", "max_line_chars", "max_cue_s", "multichannel", "drop_crosstalk"}
    fields |= {"diarize", "diarizer", "known_speaker_names[]", "known_speaker_references[]"}
    assert set(form["properties"]) == fields | {f"chunking_strategy[{key}]" for key in ("type", "window_s", "overlap_s")}
    assert all(field.get("description") for field in form["properties"].values())
