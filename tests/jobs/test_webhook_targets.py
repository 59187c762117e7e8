"""Which URLs may be targets."""

from ipaddress import ip_address

import pytest

from serve_app.errors import RequestError
from serve_app.jobs.webhook_targets import MAX_URL_CHARS, WebhookTargets, is_public

PUBLIC = [
    *("8.8.8.8", "93.184.216.34", "100.63.255.255", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450::1"),
    # IPv4 in IPv6: mapped, NAT64, 6to4.
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
]

NOT_PUBLIC = [
    # Private, shared, loopback, unspecified.
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3"),
    # Link-local, where clouds have their metadata; metadata elsewhere.
    *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254"),
    # Multicast, reserved, broadcast, tests, documentation, 6to4 relays.
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "203.0.113.9", "192.88.99.1"),
    # The same of IPv6; site-local; Teredo; what nobody has.
    *("::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1", "3fff::1", "2001:0:1::1", "4000::1"),
    *("100::1", "64:ff9b:1::1", "::8.8.8.8", "::ffff:0:8.8.8.8"),
    # IPv4 in IPv6.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::1", "2002:a00:1::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RequestError, match="not on the public internet") as refusal:
        WebhookTargets().target(f"https://{host}/hook")
    assert refusal.value.param == "webhook_url"
    assert address not in refusal.value.message


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://example.com/hook?a=b", "example.com", 443),
        ("http://example.com", "example.com", 80),
        ("https://EXAMPLE.com.:8443/", "example.com", 8443),
        ("https://a_b.example.com/", "a_b.example.com", 443),
        ("https://bücher.example/", "xn--bcher-kva.example", 443),
        ("https://8.8.8.8/", "8.8.8.8", 443),
        ("https://[2606:4700::1]:444/", "2606:4700::1", 444),
        # A name of digits, which the system's look-up takes for 127.0.0.1: its address is checked when it has been looked up.
        ("http://2130706433/", "2130706433", 80),
    ],
)
def test_urls_that_may_be_targets(url: str, host: str, port: int) -> None:
    target = WebhookTargets().target(url)
    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "//example.com", "https:", "https://", "https:///hook", "https://.", "https://a..b/"),
        *("ftp://example.com", "file:///etc/passwd", "gopher://example.com", "unix:///socket", "javascript:alert(1)"),
        *("https://user@example.com", "https://user:password@example.com", "https://example.com\\@8.8.8.8/"),
        *(
            "https://exa mple.com",
            "https://example.com\n/",
            "https://127.0.0.1%00.example.com/",
            "https://a%2eb/",
            "https://*.a.com",
        ),
        *(
            "https://[::1",
            "https://[fe80::1%25eth0]/",
            "https://[2606::1%25eth0]/",
            "https://-a.com",
            "https://" + "a" * 64 + ".com",
        ),
        *("https://example.com:0/", "https://example.com:65536/", "https://example.com:x/", "https://8.8.8.8:99999/"),
        "https://example.com/" + "a" * MAX_URL_CHARS,
        "https://" + ".".join(["a" * 60] * 5),
    ],
)
def test_urls_that_may_not(url: str) -> None:
    with pytest.raises(RequestError, match="`webhook_url`"):
        WebhookTargets().target(url)


class TestHosts:
    """Those that the operator lists."""

    def is_allowed(self, hosts: list[str], url: str, *addresses: str) -> bool:
        targets = WebhookTargets.of(hosts)
        try:
            targets.check(targets.target(url), map(ip_address, addresses))
        except RequestError:
            return False
        return True

    @pytest.mark.parametrize("name", ["hooks.inner", "HOOKS.inner", "hooks.inner."])
    def test_a_name(self, name: str) -> None:
        assert self.is_allowed([name], "http://Hooks.INNER./", "10.0.0.1")
        assert not self.is_allowed([name], "http://other.inner/", "10.0.0.1")
        assert not self.is_allowed([name], "http://a.hooks.inner/", "10.0.0.1")
        assert not self.is_allowed([name], "http://hooks.inner.evil.com/", "10.0.0.1")

    def test_a_pattern(self) -> None:
        assert self.is_allowed(["*.inner"], "http://a.inner/", "10.0.0.1")
        assert self.is_allowed(["*.inner"], "http://a.b.inner/", "10.0.0.1")
        assert not self.is_allowed(["*.inner"], "http://inner/", "10.0.0.1")
        assert not self.is_allowed(["*.inner"], "http://ainner/", "10.0.0.1")

    def test_a_name_that_is_not_ascii(self) -> None:
        assert self.is_allowed(["bücher.inner"], "http://xn--bcher-kva.inner/", "10.0.0.1")

    def test_addresses_and_networks(self) -> None:
        hosts = ["10.1.0.0/16", "127.0.0.1", "fd00::/8"]
        assert self.is_allowed(hosts, "http://127.0.0.1:9000/")
        assert self.is_allowed(hosts, "http://[::ffff:10.1.2.3]/")
        assert self.is_allowed(hosts, "http://[fd00::1]/")
        assert not self.is_allowed(hosts, "http://127.0.0.2/")
        assert not self.is_allowed(hosts, "http://10.2.0.1/")

    def test_every_address_of_a_name_counts(self) -> None:
        assert self.is_allowed(["10.1.0.0/16"], "http://a.com/", "10.1.0.1", "8.8.8.8")
        assert not self.is_allowed(["10.1.0.0/16"], "http://a.com/", "10.1.0.1", "8.8.8.8", "10.2.0.1")
        assert not self.is_allowed([], "http://a.com/", "8.8.8.8", "::1")

    @pytest.mark.parametrize(
        "entry", ["", "*", "*.", "a*.com", "http://a.com", "a.com:80", "a com", "10.0.0.1/8", "10.0.0.0/99", "a/b"]
    )
    def test_entries_that_mean_nothing(self, entry: str) -> None:
        with pytest.raises(ValueError, match=r"no host name|host bits|network"):
            WebhookTargets.of([entry])
