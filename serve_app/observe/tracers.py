"""Whether there is a tracer. Pure.

OpenTelemetry is imported only where traces are wanted: sending them needs a package that is not installed by default.
"""

from importlib.util import find_spec

from serve_app.observe.tracing import Tracer
from serve_app.request_settings import TracingSettings

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
"""The package that sends spans."""


def open_tracer(settings: TracingSettings, deployment: str, replica: str) -> Tracer | None:
    """The tracer of a process, which spans name as that replica; None without an endpoint. Raises ValueError, see `check`."""
    check(settings)
    if not settings.endpoint:
        return None
    from serve_app.observe.otel_tracer import OtelTracer

    return OtelTracer(settings, deployment, replica)


def check(settings: TracingSettings) -> None:
    """Raises ValueError if traces are wanted and the package that sends them is missing."""
    if not settings.endpoint:
        return
    try:
        is_there = find_spec(EXPORTER) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise ValueError(
            "tracing.endpoint is set, but OpenTelemetry's exporter is not installed: pip install 'parakeet-ray-serve[tracing]', "
            "or opentelemetry-exporter-otlp-proto-http"
        )
