"""Every metric of the server. The table in docs/operating.md is generated from this file by `python -m tools.metrics_table`."""

from dataclasses import dataclass
from typing import Literal

PREFIX = "parakeet_"
"""Beginning of the names under which Ray gets the metrics. Its exporter puts `ray_` in front of all names."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A counter grows by what is recorded, a gauge takes it as its value, a histogram observes it."""

    name: str
    """With its unit, and without PREFIX."""
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper bounds, ascending, positive."""

    @property
    def exported_name(self) -> str:
        """The name that Prometheus gets, by Ray's rules."""
        return f"ray_{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


FAST_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60, 300)
"""Buckets from milliseconds to minutes, seconds."""

SLOW_S = (0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600, 1800, 3600, 21_600)
"""Buckets from a short file to the longest request, seconds."""

AUDIO_S = (1, 2, 5, 10, 15, 20, 30, 40, 60, 90, 120, 180, 240, 300, 400, 600, 900, 1200, 1800, 2400, 4000)
"""Buckets for audio of a batch, seconds."""

JOB = ("model", "entry_point", "lane")

AUDIO_SECONDS_RECEIVED = Metric(
    "audio_seconds_received",
    "counter",
    "Audio that came in to be transcribed, each second once: of a file as it is cut into windows, of a stream as it arrives.",
    JOB,
)
AUDIO_SECONDS_DECODED = Metric(
    "audio_seconds_decoded",
    "counter",
    "Audio that models decoded, so the work of the replicas: overlaps of windows, left context of live windows and retries count "
    "too, silence that no model gets does not.",
    JOB,
)
AUDIO_SECONDS_TRANSCRIBED = Metric(
    "audio_seconds_transcribed",
    "counter",
    "Audio whose text is final, each second once. What is received and not transcribed in the end belongs to jobs that failed or "
    "were given up.",
    JOB,
)
REQUESTS = Metric(
    "requests",
    "counter",
    "Requests and WebSocket connections that have ended. `code`: HTTP status, close code of a WebSocket, or `gone` where the "
    "client left first. A failure after the status was sent, or in a session that goes on, is only in `failures`.",
    ("route", "code"),
)
FAILURES = Metric(
    "failures",
    "counter",
    "Failures that clients were told of, by the code in the answer, event or message. A Realtime session has one for each "
    "utterance that fails and each event that is refused.",
    ("route", "error"),
)
REQUESTS_IN_PROGRESS = Metric(
    "requests_in_progress", "gauge", "POST requests in progress, those that are still being uploaded included."
)
REQUEST_LATENCY_SECONDS = Metric(
    "request_latency_seconds",
    "histogram",
    "HTTP requests that succeeded (status below 400): from their arrival, so with the upload, to the end of the response.",
    ("route",),
    SLOW_S,
)
REQUEST_RTF = Metric(
    "request_rtf",
    "histogram",
    "Files: time from the start of decoding, over REST after the upload or once it is transcribed while it arrives, to the end "
    "of the transcript, by the length of the audio (real-time factor; RTFx is its inverse).",
    ("model", "entry_point"),
    (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 5, 10, 50),
)
FIRST_TEXT_LATENCY_SECONDS = Metric(
    "first_text_latency_seconds",
    "histogram",
    "Files: from the start of decoding to the first final segment. Streams, once per utterance: from when the ingress read the "
    "start of speech, which the VAD detected, to the first words.",
    ("model", "entry_point"),
    SLOW_S,
)
LIVE_STREAMS = Metric("live_streams", "gauge", "Open WebSocket connections that have sent audio, files included.")
LIVE_FINAL_LAG_SECONDS = Metric(
    "live_final_lag_seconds",
    "histogram",
    "Streams: from when the ingress read the end of a segment until its text was final.",
    ("model", "entry_point"),
    (0.2, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 20, 30, 60),
)
JOBS_RUNNING = Metric("jobs_running", "gauge", "Jobs that an ingress replica is transcribing.")
JOBS_ENDED = Metric("jobs_ended", "counter", "Jobs that a worker has ended, by their state.", ("state",))
WEBHOOK_TRIES = Metric(
    "webhook_tries",
    "counter",
    "Tries to deliver a webhook message: `delivered`, `failed` or, for the last one, `given_up`.",
    ("outcome",),
)
UPLOAD_SPOOL_BYTES = Metric(
    "upload_spool_bytes", "gauge", "Received bytes of the requests and files in progress; uploads over 1 MB are on disk."
)
DECODER_PROCESSES = Metric("decoder_processes", "gauge", "Decoder processes of an ingress replica.")
DECODER_FAILURES = Metric(
    "decoder_failures", "counter", "Decoder processes that ended while they were needed, or could not be started."
)
REMAINING_AUDIO_SECONDS = Metric(
    "remaining_audio_seconds",
    "gauge",
    "Files in progress of an ingress replica: audio that is not transcribed yet, as far as their length is known. Replicas are "
    "scaled by it.",
    ("model",),
)
LIVE_LOAD = Metric(
    "live_load_ratio",
    "gauge",
    "Live streams of an ingress replica: seconds of audio that they need decoded per second. Replicas are scaled by it.",
    ("model",),
)
DECODE_RATE = Metric(
    "decode_rate_ratio", "gauge", "Seconds of audio that a replica decodes per second while its batches are full.", ("model",)
)
WINDOWS_RETRIED = Metric("windows_retried", "counter", "Windows that were sent again because their replica was lost.", ("model",))
GAPS_REDECODED = Metric("gaps_redecoded", "counter", "Retry windows of gap repair: speech without tokens.", ("model",))
QUEUED_WINDOWS = Metric("queued_windows", "gauge", "Windows in the batch queue of a replica.", ("model",))
QUEUE_SECONDS = Metric(
    "queue_seconds",
    "histogram",
    "Windows: from their arrival at a replica to the start of their batch.",
    ("model", "lane"),
    FAST_S,
)
BATCH_AUDIO_SECONDS = Metric("batch_audio_seconds", "histogram", "Audio of a batch, without padding.", ("model",), AUDIO_S)
BATCH_ITEMS = Metric(
    "batch_items", "histogram", "Windows of a batch.", ("model",), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
)
BATCH_PADDING_RATIO = Metric(
    "batch_padding_ratio",
    "histogram",
    "Share of padding in the audio of a batch, 0 to 1.",
    ("model",),
    (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1),
)
STEP_SECONDS = Metric(
    "step_seconds",
    "histogram",
    "Duration of a stage of a batch, also where it failed: `prepare` (buffer, copy, features) or `recognise` (encoder, decoder, "
    "tokens).",
    ("model", "stage"),
    FAST_S,
)
BUSY_SECONDS = Metric(
    "busy_seconds",
    "counter",
    "Time in the stages of batches, seconds: its rate is the share of the time in which a replica is busy with that stage.",
    ("model", "stage"),
)
DIARIZER_STEP_SECONDS = Metric(
    "diarizer_step_seconds", "histogram", "Duration of a step of a diarizer, also where it failed.", ("diarizer",), FAST_S
)
DIARIZER_AUDIO_SECONDS = Metric(
    "diarizer_audio_seconds",
    "counter",
    "Audio in which a diarizer looked for speakers, each second once; references of known speakers and repeated steps count too.",
    ("diarizer",),
)
DIARIZER_STEPS_RETRIED = Metric(
    "diarizer_steps_retried", "counter", "Steps that were sent again because their replica was lost or failed.", ("diarizer",)
)
MODEL_STATE = Metric(
    "model_state",
    "gauge",
    "1 for the state that a model or diarizer is in, 0 for the others: the best state of its replicas, as in `/ready`.",
    ("model", "state"),
)
MODEL_LOAD_SECONDS = Metric(
    "model_load_seconds",
    "histogram",
    "Loading a model in a replica, with its download and its measurements.",
    ("model",),
    (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600),
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order of this file."""
