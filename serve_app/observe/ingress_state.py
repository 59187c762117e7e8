"""The state of an ingress as metrics, recorded with every heartbeat. Pure."""

from collections.abc import Iterable
from typing import get_args

from serve_app.cluster.status import ModelState, ModelStatus
from serve_app.observe import catalogue
from serve_app.service import SpeechService

STATES: tuple[ModelState, ...] = get_args(ModelState)


class IngressState:
    """Records the state of one ingress."""

    def __init__(self, service: SpeechService) -> None:
        self._service = service
        self._decoder_failures = 0  # recorded so far

    def record(self, models: Iterable[ModelStatus], diarizers: Iterable[ModelStatus] = ()) -> None:
        """The status of every configured model, and of every diarizer."""
        admission, decoders, record = self._service.admission, self._service.decoders, self._service.recorder.record
        record(catalogue.LIVE_STREAMS, admission.streams.taken)
        record(catalogue.REQUESTS_IN_PROGRESS, admission.requests)
        record(catalogue.UPLOAD_SPOOL_BYTES, admission.spooled_bytes)
        record(catalogue.DECODER_PROCESSES, len(decoders.pids))
        failures = decoders.failures
        record(catalogue.DECODER_FAILURES, failures - self._decoder_failures)
        self._decoder_failures = failures
        for status in models:
            demand = self._service.demand.of(status.model.name)
            record(catalogue.REMAINING_AUDIO_SECONDS, demand.remaining_s, status.model.name)
            record(catalogue.LIVE_LOAD, demand.live_load, status.model.name)
            self._record_state(status)
        for status in diarizers:
            self._record_state(status)

    def _record_state(self, status: ModelStatus) -> None:
        for state in STATES:
            self._service.recorder.record(catalogue.MODEL_STATE, float(state == status.state), status.model.name, state)
