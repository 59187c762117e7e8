"""What Ray's exporter on this node has of this server and of Ray Serve, in Prometheus' text format."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import ray

from serve_app.errors import MetricsUnavailable

log = logging.getLogger("ray.serve")

TIMEOUT_S = 5.0
"""Within this time the exporter must have answered, seconds. Prometheus waits for 10 s by default."""

MAX_EXPORT_BYTES = 32 << 20
"""Maximum answer of the exporter, bytes. A node with a few replicas has some hundred kilobytes."""

FAMILIES = ("ray_parakeet_", "ray_serve_")
"""Prefixes of the metrics that are passed on. The exporter has those of Ray itself too, which are most of its answer."""


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
                if self._url is None:
                    raise MetricsUnavailable("Ray exports no metrics on this node: its dashboard agent is not running.")
                exported = await _get(self._url)
        except TimeoutError:
            raise MetricsUnavailable(f"Ray's exporter did not answer within {TIMEOUT_S:.0f} s.") from None
        except httpx2.HTTPError as error:
            # After a restart it may have another port.
            self._url = None
            log.warning("Ray's exporter cannot be read: %r", error)
            raise MetricsUnavailable("Ray's exporter on this node cannot be read; the server's log says why.") from None
        return await asyncio.to_thread(_ours, exported)


async def _get(url: str) -> bytes:
    # Without the proxies of the environment: it is this machine.
    async with httpx2.AsyncClient(trust_env=False, timeout=None) as client, client.stream("GET", url) as response:
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_EXPORT_BYTES:
                raise MetricsUnavailable(f"Ray's exporter answered with more than {MAX_EXPORT_BYTES >> 20} MB.")
        return bytes(body)


def _ours(exported: bytes) -> str:
    return "".join(_lines_of(FAMILIES, exported.decode(errors="replace")))


def _lines_of(families: tuple[str, ...], text: str) -> Iterator[str]:
    """Lines of the metrics with those prefixes: samples, and the comments that begin with `# HELP` or `# TYPE`."""
    starts = (*families, *(f"# {comment} {family}" for comment in ("HELP", "TYPE") for family in families))
    return (f"{line}\n" for line in text.split("\n") if line.startswith(starts))
