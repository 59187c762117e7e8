"""What is passed on of Ray's exporter, and what is said where it cannot be asked."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serve_app.errors import MetricsUnavailable
from serve_app.observe import node_exporter
from serve_app.observe.node_exporter import NodeExporter
from testing.fake_service import serving

EXPORT = """\
# HELP ray_parakeet_requests_total Requests.
# TYPE ray_parakeet_requests_total counter
ray_parakeet_requests_total{route="/health"} 3.0
# HELP ray_object_store_memory Of Ray, about ray_parakeet_requests_total.
# TYPE ray_object_store_memory gauge
ray_object_store_memory{x="ray_serve_"} 1.0
# TYPE ray_serve_deployment_replica_healthy gauge
ray_serve_deployment_replica_healthy{deployment="model m"} 1.0
# TYPE ray_serve_num_http_requests_total counter
ray_serve_num_http_requests_total{route="/"} 4.0
# TYPE python_info gauge
python_info 1.0
"""
OURS = """\
# HELP ray_parakeet_requests_total Requests.
# TYPE ray_parakeet_requests_total counter
ray_parakeet_requests_total{route="/health"} 3.0
# TYPE ray_serve_deployment_replica_healthy gauge
ray_serve_deployment_replica_healthy{deployment="model m"} 1.0
"""


@contextmanager
def exporting(respond: Callable[[], Response]) -> Iterator[NodeExporter]:
    async def metrics(request: Request) -> Response:
        return respond()

    with serving(Starlette(routes=[Route("/metrics", metrics)])) as url:
        yield NodeExporter(lambda: f"{url}/metrics")


async def test_only_our_metrics_and_two_of_serve_are_passed_on() -> None:
    with exporting(lambda: PlainTextResponse(EXPORT)) as exporter:
        assert await exporter.scrape() == OURS


async def test_calls_at_the_same_time_share_one_answer() -> None:
    asked: list[int] = []

    def respond() -> Response:
        asked.append(1)
        return PlainTextResponse(EXPORT)

    with exporting(respond) as exporter:
        assert await asyncio.gather(*(exporter.scrape() for _ in range(8))) == [OURS] * 8
        assert len(asked) == 1
        await exporter.scrape()
    assert len(asked) == 2


async def test_a_caller_that_leaves_does_not_end_the_others() -> None:
    with exporting(lambda: PlainTextResponse(EXPORT)) as exporter:
        leaving, staying = asyncio.create_task(exporter.scrape()), asyncio.create_task(exporter.scrape())
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == OURS


async def test_a_node_without_an_exporter() -> None:
    with pytest.raises(MetricsUnavailable, match="no metrics"):
        await NodeExporter(lambda: None).scrape()


async def test_an_exporter_that_fails_is_looked_for_again() -> None:
    addresses: list[str] = []
    with exporting(lambda: Response(status_code=500)) as failing, exporting(lambda: PlainTextResponse(EXPORT)) as working:
        exporter = NodeExporter(lambda: addresses[-1])
        addresses.append(failing._find_url() or "")
        with pytest.raises(MetricsUnavailable, match="cannot be read"):
            await exporter.scrape()
        addresses.append(working._find_url() or "")
        assert await exporter.scrape() == OURS


async def test_of_a_large_answer_only_what_is_passed_on_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_exporter, "MAX_KEPT_BYTES", 1 << 20)
    other = 'ray_serve_num_http_requests_total{route="/"} 4.0\n' * 50_000
    with exporting(lambda: PlainTextResponse(other + EXPORT)) as exporter:
        assert await exporter.scrape() == OURS


async def test_what_is_passed_on_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not `caplog`: Ray and NeMo change the propagation of loggers when they are imported.
    logged: list[str] = []
    monkeypatch.setattr(node_exporter.log, "warning", lambda message, *arguments: logged.append(message % arguments))
    monkeypatch.setattr(node_exporter, "MAX_KEPT_BYTES", 1 << 20)
    line = 'ray_parakeet_requests_total{route="/health"} 3.0\n'
    with exporting(lambda: PlainTextResponse(line * 50_000)) as exporter:
        answer = await exporter.scrape()
    assert set(answer.splitlines()) == {line.strip()}
    assert len(answer) <= 1 << 20
    assert ["more than 1 MB" in line for line in logged] == [True]


async def test_a_cluster_that_does_not_say_where_the_exporter_is() -> None:
    def fail() -> str:
        raise RuntimeError("Failed to get nodes")

    with pytest.raises(MetricsUnavailable, match="cannot be read"):
        await NodeExporter(fail).scrape()


async def test_an_exporter_that_does_not_answer_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(node_exporter, "TIMEOUT_S", 0.2)
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        addresses = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics"]
        exporter = NodeExporter(lambda: addresses[-1])
        with pytest.raises(MetricsUnavailable, match="did not answer"):
            await exporter.scrape()
    with exporting(lambda: PlainTextResponse(EXPORT)) as working:
        addresses.append(working._find_url() or "")
        monkeypatch.setattr(node_exporter, "TIMEOUT_S", 5.0)
        assert await exporter.scrape() == OURS
