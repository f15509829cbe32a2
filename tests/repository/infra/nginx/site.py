"""nginx with the file of `infra/nginx`, and what is behind it."""

from __future__ import annotations

import base64
import os
import pwd
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from repository.infra.processes import listens, running
from support.certificates import Authority, Certificate

from penstock.workers.local.up.redis_server import free_port

ROOT = Path(__file__).parents[4]
HERE = Path(__file__).parent
CONF = ROOT / "infra/nginx/penstock.conf"
STEPS = 3
"""Of a job; see proxied_jobs.py."""
LOGIN = "op:secret"
BASIC = {"Authorization": "Basic " + base64.b64encode(LOGIN.encode()).decode()}
"""Header of a login to Flower."""


def find_nginx() -> str:
    """Path of nginx; skips the test where it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    return program


@dataclass(frozen=True)
class Proxy:
    """nginx with the file of `infra/nginx`.

    Attributes:
        url: where it serves HTTPS, as `https://localhost:PORT`.
        plain_url: the same without TLS.
        authority: certificate of its CA.
    """

    url: str
    plain_url: str
    authority: Path
    folder: Path

    @property
    def access_log(self) -> str:
        return (self.folder / "penstock.access.log").read_text()

    @property
    def logs(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("*.log"))


@contextmanager
def nginx(folder: Path, *, gateways: Sequence[int], flower: int) -> Iterator[Proxy]:
    """nginx in front of these ports. The file's placeholders are filled in, as its first lines ask for, and the rest is
    as it is shipped."""
    program = find_nginx()
    folder.mkdir(parents=True)
    authority = Authority(folder / "certificates")
    certificate = authority.issue("localhost", "DNS:localhost")
    tls, plain = free_port(), free_port()
    filled = fill_in(folder, certificate, gateways, {"443": tls, "80": plain, "5555": flower})
    (folder / "penstock.conf").write_text(filled)
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = f"user {pwd.getpwuid(0).pw_name};\n" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}worker_processes 2;\ndaemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/start.log;\n"
        f"events {{}}\nhttp {{\n    include /etc/nginx/mime.types;\n    gzip on;\n    gzip_types *;\n{temporary}"
        f"    include {folder}/penstock.conf;\n}}\n"
    )
    command = [program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "start.log"]
    checked = subprocess.run([*map(str, command), "-t"], capture_output=True, text=True)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if "[warn]" in line]) == (0, []), (
        checked.stderr
    )
    with running(command, folder / "nginx.log", ready=lambda _: listens(tls)):
        yield Proxy(f"https://localhost:{tls}", f"http://localhost:{plain}", authority.file, folder)


def fill_in(folder: Path, certificate: Certificate, gateways: Sequence[int], ports: dict[str, int]) -> str:
    """The shipped file with a test's ports, name, certificate and logs."""
    text = CONF.read_text()
    changes = {
        "listen 443 ": f"listen 127.0.0.1:{ports['443']} ",
        "listen 80;": f"listen 127.0.0.1:{ports['80']};",
        "    server 127.0.0.1:8480;": "\n".join(f"    server 127.0.0.1:{port};" for port in gateways),
        "127.0.0.1:5555": f"127.0.0.1:{ports['5555']}",
        "jobs.example.com": "localhost",
        "/etc/ssl/penstock/fullchain.pem": str(certificate.file),
        "/etc/ssl/penstock/privkey.pem": str(certificate.key),
        "/var/log/nginx/": f"{folder}/",
    }
    for placeholder, value in changes.items():
        assert placeholder in text, placeholder
        text = text.replace(placeholder, value)
    return text


class Site:
    """A proxy and what is behind it.

    Attributes:
        key: header of an API key for everything.
        gateway: its port.
    """

    def __init__(self, proxy: Proxy, folder: Path, key: dict[str, str], gateway: int) -> None:
        self.proxy, self.folder, self.key, self.gateway = proxy, folder, key, gateway
        self.tls = ssl.create_default_context(cafile=str(proxy.authority))
        self.client = httpx.Client(base_url=proxy.url, verify=self.tls, timeout=60)

    def send(self, **fields: str) -> str:
        """Send a job through the proxy. Returns its id."""
        steps = self.folder / f"steps-{len(list(self.folder.glob('steps-*')))}"
        steps.mkdir()
        response = self.client.post(
            "/v1/jobs/proxied.climb", json={"folder": str(steps), "steps": STEPS, **fields}, headers=self.key
        )
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def take_step(self, number: int) -> None:
        """Let the handler of the newest job go on."""
        newest = self.folder / f"steps-{len(list(self.folder.glob('steps-*'))) - 1}"
        (newest / f"seen-{number}").touch()

    def close(self) -> None:
        """Let all jobs end, so that their worker needs no grace."""
        for steps in self.folder.glob("steps-*"):
            for number in range(1, STEPS + 1):
                (steps / f"seen-{number}").touch()
        self.client.close()

    def flower(self, path: str) -> httpx.Response:
        """A page of Flower, with its login."""
        return self.client.get(path, headers=BASIC)

    def raw_get(self, path: str) -> str:
        """Answer to a path that is sent as it is: clients make `/metrics` of `//metrics` themselves."""
        host, port = "localhost", urlsplit(self.proxy.url).port or 0
        with (
            socket.create_connection(("127.0.0.1", port), 60) as plain,
            self.tls.wrap_socket(plain, server_hostname=host) as stream,
        ):
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: stream.recv(65536), b"")).decode()
