"""What Ray's exporter on this node has of this server and of Ray Serve, in Prometheus' text format."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx2
import ray

from serve_app.errors import MetricsUnavailable

log = logging.getLogger("ray.serve")

TIMEOUT_S = 5.0
"""Within this time the exporter must have answered, seconds. Prometheus waits for 10 s by default."""

SERVE_METRICS = ("ray_serve_deployment_replica_healthy", "ray_serve_autoscaling_target_replicas")
"""Those of Ray Serve that the dashboard shows. The others are most of what the exporter has, and grow with every replica."""

FAMILIES = ("ray_parakeet_", *SERVE_METRICS)
"""Prefixes of the metrics that are passed on."""

STARTS = tuple(f"{comment}{family}".encode() for comment in ("", "# HELP ", "# TYPE ") for family in FAMILIES)
"""Beginnings of their lines: of samples and of comments."""

MAX_KEPT_BYTES = 32 << 20
"""Maximum length of those lines, bytes. A replica has about 70 kB, and the exporter keeps counters and histograms of replicas
that have ended until Ray is restarted."""


def exporter_url() -> str | None:
    """The address of Ray's exporter on this node; None if it has none. Blocking."""
    node_id = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    node = next((node for node in nodes if node["NodeID"] == node_id), {})
    port = node.get("MetricsExportPort", 0)
    if port <= 0:
        return None
    host = node["NodeManagerAddress"]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


class NodeExporter:
    """Asks the exporter of this node, once at a time."""

    def __init__(self, find_url: Callable[[], str | None] = exporter_url) -> None:
        self._find_url = find_url
        self._url: str | None = None
        self._asking: asyncio.Task[str] | None = None

    async def scrape(self) -> str:
        """The metrics of this server's processes on this node, and of Serve's. Raises MetricsUnavailable.

        Calls at the same time share one answer.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        # Shielded: others may wait for it too.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._url is None:
                    self._url = await asyncio.to_thread(self._find_url)
                if self._url is not None:
                    return await _ours(self._url)
        except Exception as error:
            # After a restart it may have another port.
            self._url = None
            log.warning("Ray's exporter cannot be read: %r", error)
            if isinstance(error, TimeoutError):
                raise MetricsUnavailable(f"Ray's exporter did not answer within {TIMEOUT_S:.0f} s.") from None
            raise MetricsUnavailable("Ray's exporter on this node cannot be read; the server's log says why.") from None
        raise MetricsUnavailable("Ray exports no metrics on this node: its dashboard agent is not running.")


async def _ours(url: str) -> str:
    """The lines of FAMILIES, picked while the answer arrives."""
    kept, kept_bytes, rest = list[bytes](), 0, b""
    # Without the proxies of the environment: it is this machine.
    async with httpx2.AsyncClient(trust_env=False, timeout=None) as client, client.stream("GET", url) as response:
        response.raise_for_status()
        async for chunk in response.aiter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")
            ours = [line + b"\n" for line in lines if line.startswith(STARTS)]
            kept_bytes += sum(map(len, ours))
            if kept_bytes > MAX_KEPT_BYTES:
                log.warning("Ray's exporter has more than %d MB of this server: what follows is left out", MAX_KEPT_BYTES >> 20)
                break
            kept += ours
    return b"".join(kept).decode(errors="replace")
