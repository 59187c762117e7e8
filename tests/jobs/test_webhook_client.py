"""The way to targets, over real connections."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import RequestError
from serve_app.jobs import webhook_client
from serve_app.jobs.webhook_client import Answer, NoAnswer, WebhookClient
from serve_app.jobs.webhook_targets import WebhookTargets
from tests.jobs.deliveries import until
from tests.jobs.receivers import Received, Receiver, answer, receiver

MakeClient = Callable[..., WebhookClient]


@pytest.fixture
def make_client(opened: AsyncExitStack) -> MakeClient:
    """Makes a client that may connect to `hosts`."""

    def make(*hosts: str, **arguments: Any) -> WebhookClient:
        client = WebhookClient(WebhookTargets.of(hosts), **arguments)
        opened.push_async_callback(client.close)
        return client

    return make


class Names:
    """A name server that gives one answer after the other, and then the last one again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


async def post(client: WebhookClient, url: str) -> Answer:
    return await client.post(url, {"webhook-id": "msg_1"}, b"{}")


async def test_what_arrives(target: Receiver, make_client: MakeClient) -> None:
    target.answers(answer(503, "Retry-After: 7"))
    assert await post(make_client("127.0.0.1"), target.url()) == Answer(503, "7")
    (request,) = target.received
    assert request.request_line == "POST /hook?a=b HTTP/1.1"
    assert request.body == b"{}"
    assert (request.headers["host"], request.headers["webhook-id"]) == (f"127.0.0.1:{target.port}", "msg_1")


async def test_an_address_that_is_not_public_is_not_connected_to(target: Receiver, make_client: MakeClient) -> None:
    for hosts in ((), ("127.0.0.2", "10.0.0.0/8", "localhost")):
        with pytest.raises(RequestError, match="not on the public internet"):
            await post(make_client(*hosts), target.url())
    assert target.connections == 0


class TestNames:
    async def test_the_systems_names(self, target: Receiver, make_client: MakeClient) -> None:
        assert (await post(make_client("localhost"), target.url("localhost"))).status == 204
        with pytest.raises(RequestError, match="not on the public internet"):
            await post(make_client(), target.url("localhost"))
        assert target.received[0].headers["host"] == f"localhost:{target.port}"
        assert target.connections == 1

    @pytest.mark.parametrize("name", ["2130706433", "0x7f000001", "017700000001", "127.1"])
    async def test_numbers_that_stand_for_this_machine(self, target: Receiver, make_client: MakeClient, name: str) -> None:
        with pytest.raises(RequestError, match="not on the public internet"):
            await post(make_client(), target.url(name))
        assert target.connections == 0

    async def test_a_name_that_changes_its_mind(self, target: Receiver, make_client: MakeClient, opened: AsyncExitStack) -> None:
        """The connection goes to the address that was checked, though the name stands for another one by then."""
        other = await opened.enter_async_context(receiver("127.0.0.2", target.port))
        names = Names(["127.0.0.2"], ["127.0.0.1"])
        client = make_client("127.0.0.2", look_up=names)
        assert (await post(client, target.url("rebinding.test"))).status == 204
        assert names.asked == ["rebinding.test"]
        assert (len(other.received), target.connections) == (1, 0)
        assert other.received[0].headers["host"] == f"rebinding.test:{target.port}"
        with pytest.raises(RequestError, match="not on the public internet"):
            await post(client, target.url("rebinding.test"))
        assert target.connections == 0

    async def test_one_address_that_is_not_public_is_enough(self, target: Receiver, make_client: MakeClient) -> None:
        client = make_client("127.0.0.1", look_up=Names(["127.0.0.1", "8.8.8.8", "10.0.0.1"]))
        with pytest.raises(RequestError, match="not on the public internet"):
            await post(client, target.url("mixed.test"))
        assert target.connections == 0

    async def test_the_next_address_is_tried(self, target: Receiver, make_client: MakeClient) -> None:
        client = make_client("dead-first.test", look_up=Names(["127.0.0.3", "127.0.0.1"]))
        assert (await post(client, target.url("dead-first.test"))).status == 204

    async def test_a_name_without_an_address(self, make_client: MakeClient) -> None:
        async def unknown(name: str, port: int) -> list[str]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        with pytest.raises(NoAnswer, match="cannot be looked up"):
            await post(make_client(look_up=unknown), "https://nowhere.test/")
        with pytest.raises(NoAnswer, match="no address"):
            await post(make_client(look_up=Names([])), "https://nowhere.test/")


async def test_an_ipv6_address(make_client: MakeClient, opened: AsyncExitStack) -> None:
    try:
        target = await opened.enter_async_context(receiver("::1"))
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert (await post(make_client("::1"), target.url("[::1]"))).status == 204
    assert target.received[0].headers["host"] == f"[::1]:{target.port}"


class TestAnswers:
    async def test_a_redirect_is_not_followed(self, target: Receiver, make_client: MakeClient, opened: AsyncExitStack) -> None:
        other = await opened.enter_async_context(receiver("127.0.0.2"))
        target.answers(answer(307, f"Location: {other.url()}"))
        assert await post(make_client("127.0.0.0/8"), target.url()) == Answer(307, None)
        assert (target.connections, other.connections) == (1, 0)

    async def test_cookies_do_not_come_back(self, target: Receiver, make_client: MakeClient) -> None:
        target.answers(answer(204, "Set-Cookie: a=b"))
        client = make_client("127.0.0.1")
        await post(client, target.url())
        await post(client, target.url())
        assert "cookie" not in target.received[1].headers
        assert target.connections == 2

    async def test_a_target_that_hangs(self, target: Receiver, make_client: MakeClient) -> None:
        async def hang(_: Received) -> bytes:
            await asyncio.Event().wait()
            return b""

        target.respond = hang
        with pytest.raises(NoAnswer, match=r"within 0\.05 s"):
            await post(make_client("127.0.0.1", timeout_s=0.05), target.url())

    async def test_a_name_server_that_hangs(self, make_client: MakeClient) -> None:
        async def hang(name: str, port: int) -> list[str]:
            await asyncio.Event().wait()
            return []

        with pytest.raises(NoAnswer, match=r"within 0\.05 s"):
            await post(make_client(timeout_s=0.05, look_up=hang), "https://slow.test/")

    @pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 500_000])
    async def test_nonsense(self, target: Receiver, make_client: MakeClient, said: bytes) -> None:
        target.answers(said)
        with pytest.raises(NoAnswer, match="No answer"):
            await post(make_client("127.0.0.1"), target.url())

    async def test_nobody_listens(self, target: Receiver, make_client: MakeClient) -> None:
        with pytest.raises(NoAnswer, match="No answer"):
            await post(make_client("127.0.0.0/8"), target.url("127.0.0.9"))

    async def test_a_body_that_is_too_long(self, target: Receiver, make_client: MakeClient) -> None:
        """Little of it is read."""
        target.answers(answer(200, body=b"x" * 100_000_000))
        assert (await post(make_client("127.0.0.1"), target.url())).status == 200
        await until(lambda: target.cut_off == 1)

    async def test_a_body_that_does_not_come(
        self, target: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A status is an answer, whatever the body does afterwards."""
        monkeypatch.setattr(webhook_client, "BODY_S", 0.05)
        target.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        target.stays_open = True
        assert (await post(make_client("127.0.0.1"), target.url())).status == 200


async def test_proxies_of_the_environment_are_not_used(
    target: Receiver, make_client: MakeClient, opened: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await opened.enter_async_context(receiver())
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
    assert (await post(make_client("127.0.0.1"), target.url())).status == 204
    assert (target.connections, proxy.connections) == (1, 0)


class TestTls:
    @pytest.fixture
    def contexts(self, tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """The server's, with a certificate for `hooks.test` and `127.0.0.1`, and the client's, which trusts its authority."""
        pytest.importorskip("cryptography", reason="needs `cryptography` to make a certificate")
        from testing.certificates import write_certificates

        authority, certificate = write_certificates(tmp_path, "hooks.test", "127.0.0.1")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate)
        return server, ssl.create_default_context(cafile=authority)

    async def test_the_certificate_is_checked_for_the_name(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], make_client: MakeClient, opened: AsyncExitStack
    ) -> None:
        server, trusting = contexts
        asked_for: list[str | None] = []
        server.sni_callback = lambda connection, name, context: asked_for.append(name)
        target = await opened.enter_async_context(receiver(tls=server))
        client = make_client("127.0.0.1", look_up=Names(["127.0.0.1"]), verify=trusting)
        assert (await post(client, target.url("hooks.test.", "https"))).status == 204
        # At the same address, right after the other.
        with pytest.raises(NoAnswer, match=r"other\.test"):
            await post(client, target.url("other.test", "https"))
        assert (await post(client, target.url("127.0.0.1", "https"))).status == 204
        assert asked_for == ["hooks.test", "other.test", None]
        assert len(target.received) == 2

    async def test_other_authorities_are_not_trusted(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], make_client: MakeClient, opened: AsyncExitStack
    ) -> None:
        target = await opened.enter_async_context(receiver(tls=contexts[0]))
        with pytest.raises(NoAnswer, match="certificate"):
            await post(make_client("127.0.0.1"), target.url(scheme="https"))
        assert target.received == []
