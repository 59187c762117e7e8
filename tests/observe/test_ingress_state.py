"""The state of an ingress as metrics."""

from serve_app.cluster.status import ModelStatus, ReplicaStatus
from serve_app.observe import catalogue
from serve_app.observe.ingress_state import STATES, IngressState
from testing.fake_service import FakeService


def test_gauges_follow_the_state_and_counters_its_changes(server: FakeService) -> None:
    service, metrics = server.service, server.metrics
    first, second = service.settings.models
    state = IngressState(service)
    before = service.decoders.failures
    with service.admission.spool() as spool, service.admission.stream("an address"), service.demand.file("first") as file:
        file.planned(30, announced_s=70)
        spool(1_000)
        spool(24)
        state.record([ModelStatus(first, (ReplicaStatus("r", "ready"),)), ModelStatus(second, ())])
    service.decoders.failures += 2
    try:
        state.record([ModelStatus(first, (ReplicaStatus("r", "failed"),))])
    finally:
        service.decoders.failures = before
    assert metrics.values(catalogue.UPLOAD_SPOOL_BYTES) == [1_024, 0]
    assert metrics.values(catalogue.LIVE_STREAMS) == [1, 0]
    assert metrics.values(catalogue.REMAINING_AUDIO_SECONDS, "first") == [70, 0]
    assert metrics.values(catalogue.LIVE_LOAD, "second") == [0]
    assert metrics.values(catalogue.DECODER_PROCESSES) == [len(service.decoders.pids)] * 2
    assert metrics.values(catalogue.DECODER_FAILURES)[-1] == 2
    assert metrics.values(catalogue.MODEL_STATE, "first", "ready") == [1, 0]
    assert metrics.values(catalogue.MODEL_STATE, "first", "failed") == [0, 1]
    assert metrics.values(catalogue.MODEL_STATE, "second", "unloaded") == [1]
    assert {labels[1] for labels in metrics.labels(catalogue.MODEL_STATE)} == set(STATES)
