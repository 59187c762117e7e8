"""A reverse proxy in front of a running server, configured by the examples in deploy/ with a certificate made for the test.

Debian's packages `nginx` and `caddy` have the programs.
"""

import contextlib
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from testing.paths import ROOT
from testing.server import Server, free_port

PREFIX = "/stt"
"""The path below which the examples serve."""

REMOTE_ADDRESS = "127.0.0.9"
"""From where nginx connects to the server, as if it ran on another machine. The server has to trust it."""

START_S = 30.0

NGINX_MAIN = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include {site};
}}
"""
"""What Debian's nginx.conf is to a site, with every file in the working folder."""

CADDY_MAIN = """
{{
	admin off
	auto_https disable_redirects
	storage file_system {folder}/storage
}}
"""


@dataclass(frozen=True, slots=True)
class ReverseProxy:
    """A running reverse proxy."""

    url: str
    """Where it serves, with the prefix, without a slash at the end."""
    certificates: ssl.SSLContext
    """Trusts the certificate of the proxy."""
    process: psutil.Process
    folder: Path
    """Of its files."""

    def client(self, source_address: str = "127.0.0.1") -> httpx2.Client:
        """A client with that address."""
        transport = httpx2.HTTPTransport(verify=self.certificates, local_address=source_address)
        return httpx2.Client(base_url=self.url, transport=transport, timeout=60)


def nginx(server: Server, folder: Path, port: int, certificate: Path) -> list[str]:
    """Write the configuration; returns the command."""
    site, main = folder / "parakeet.conf", folder / "nginx.conf"
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "listen [::]:443 ssl;": "",
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
        "listen [::]:80;": "",
        "/etc/letsencrypt/live/speech.example/fullchain.pem": str(certificate),
        "/etc/letsencrypt/live/speech.example/privkey.pem": str(certificate),
        "proxy_pass http://127.0.0.1:8000/;": f"proxy_pass {server.url}/; proxy_bind {REMOTE_ADDRESS};",
    }
    site.write_text(_changed(ROOT / "deploy" / "nginx" / "parakeet.conf", changes))
    main.write_text(NGINX_MAIN.format(site=site))
    return ["nginx", "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(main)]


def caddy(server: Server, folder: Path, port: int, certificate: Path) -> list[str]:
    """The same for Caddy."""
    path = folder / "Caddyfile"
    changes = {
        "speech.example {": f"https://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {certificate}",
        "127.0.0.1:8000": server.url.removeprefix("http://"),
    }
    path.write_text(CADDY_MAIN.format(folder=folder) + _changed(ROOT / "deploy" / "caddy" / "Caddyfile", changes))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(path)]


Kind = Callable[[Server, Path, int, Path], list[str]]

KINDS: Mapping[str, Kind] = {"nginx": nginx, "caddy": caddy}


def program(name: str) -> str | None:
    """The program of that kind, if it is installed. Debian keeps nginx where only root's path leads."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def reverse_proxy(kind: str, server: Server, folder: Path) -> Iterator[ReverseProxy]:
    """A proxy of that kind in front of the server, until the block ends. It needs the package `cryptography`."""
    from testing.certificates import write_certificates

    authority, certificate = write_certificates(folder, "speech.example", "127.0.0.1")
    port = free_port()
    _, *arguments = KINDS[kind](server, folder, port, certificate)
    log_path = folder / "output"
    environment = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with log_path.open("wb") as log:
        process = subprocess.Popen([program(kind) or kind, *arguments], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        certificates = ssl.create_default_context(cafile=authority)
        proxy = ReverseProxy(f"https://127.0.0.1:{port}{PREFIX}", certificates, psutil.Process(process.pid), folder)
        _wait_until_up(proxy, process, log_path)
        yield proxy
    finally:
        process.terminate()
        process.wait()


def _changed(path: Path, changes: Mapping[str, str]) -> str:
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, f"{path.name} has no {old!r}"
        text = text.replace(old, new)
    return text


def _wait_until_up(proxy: ReverseProxy, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    until = time.monotonic() + START_S
    with proxy.client() as client:
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if client.get("/health").status_code == 200:
                    return
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the proxy did not start:\n{log_path.read_text()}")
            time.sleep(0.05)
