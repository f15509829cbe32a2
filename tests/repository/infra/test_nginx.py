"""`infra/nginx/penstock.conf` in a real nginx, in front of a real gateway, worker and Flower."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from repository.infra.proxied_jobs import STEPS
from repository.infra.site import CONF, HERE, PENSTOCK, Proxy, find_nginx, listens, nginx, running
from support.gateways import SECRET, problem
from support.ledgers import set_up
from support.polling import until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from penstock.config.sections.gateway import GatewaySettings
from penstock.ledger import api_keys
from penstock.ledger.sql.database import Database
from penstock.producers.gateway import connections
from penstock.producers.tokens import progress_token
from penstock.workers.cli.doctor.production.gateway import review_public_address
from penstock.workers.local.up.redis_server import RedisServer, free_port

LOGIN = "op:secret"
pytestmark = pytest.mark.slow
BASIC = {"Authorization": "Basic " + base64.b64encode(LOGIN.encode()).decode()}


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
        response = self.client.post("/v1/jobs/proxied.climb", json={"folder": str(steps), **fields}, headers=self.key)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def take_step(self, number: int) -> None:
        """Let the handler of the newest job go on."""
        newest = self.folder / f"steps-{len(list(self.folder.glob('steps-*'))) - 1}"
        (newest / f"seen-{number}").touch()


@pytest.fixture(scope="module")
def environment(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    find_nginx()
    folder = tmp_path_factory.mktemp("ledger")
    return {
        "PENSTOCK_BROKER_URL": redis_server.url,
        "PENSTOCK_DATABASE_URL": set_up(f"sqlite:///{folder}/ledger.db"),
        "PENSTOCK_STORAGE_URL": f"file:{folder}/storage",
        "PENSTOCK_PREFIX": "proxied",
        "PENSTOCK_TOKEN_SECRET": SECRET,
        "PENSTOCK_FLOWER_BASIC_AUTH": LOGIN,
        "PYTHONPATH": str(HERE),
    }


@pytest.fixture(scope="module")
def site(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    gateway, flower = free_port(), free_port()
    database = Database(environment["PENSTOCK_DATABASE_URL"])
    text, _key = api_keys.add(database, "test")
    database.close()
    jobs = ["--import", "proxied_jobs"]
    with (
        running(
            [PENSTOCK, "gateway", "--port", str(gateway), *jobs],
            folder / "gateway.log",
            environment=environment,
            ready=lambda _: listens(gateway),
        ),
        running(
            [PENSTOCK, "flower", "--port", str(flower), "--url-prefix", "flower"],
            folder / "flower.log",
            environment=environment,
            ready=lambda _: listens(flower),
        ),
        running(
            [PENSTOCK, "worker", "--queues", "proxied", "--name", "climber", *jobs],
            folder / "worker.log",
            environment=environment,
            ready=lambda _: "ready" in (folder / "worker.log").read_text(),
        ),
        nginx(folder / "nginx", gateways=[gateway], flower=flower) as proxy,
    ):
        site = Site(proxy, folder, {"Authorization": f"Bearer {text}"}, gateway)
        yield site
        site.client.close()


# ---- The gateway


def test_events_arrive_one_by_one_while_the_job_runs(site: Site) -> None:
    job_id = site.send()
    seen = []
    with site.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=site.key) as response:
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
        for line in response.iter_lines():
            if line.startswith("data: "):
                job = json.loads(line.removeprefix("data: "))
                if job["progress"]:
                    seen.append(job["progress"]["done"])
                    site.take_step(job["progress"]["done"])  # the handler waits for this
    assert sorted(set(seen)) == list(range(1, STEPS + 1))
    assert (job["state"], job["result"]) == ("succeeded", "at the top")


def test_events_arrive_one_by_one_over_http_2(site: Site) -> None:
    """As browsers follow a job."""
    curl = shutil.which("curl")
    if curl is None or "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("curl with HTTP/2 is not installed")
    url = f"{site.proxy.url}/v1/jobs/{site.send()}/events"
    command = [curl, "-sS", "--no-buffer", "--http2", "--include", "--cacert", str(site.proxy.authority), url]
    headers = ["-H", f"Authorization: {site.key['Authorization']}"]
    with subprocess.Popen([*command, *headers], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert next(lines).startswith("HTTP/2 200")
        states = []
        for line in lines:
            if line.startswith("data: "):
                job = json.loads(line.removeprefix("data: "))
                states.append(job["state"])
                if job["progress"]:
                    site.take_step(job["progress"]["done"])
    assert (process.returncode, states[-1]) == (0, "succeeded")


def test_a_websocket_follows_a_job_with_a_token_that_is_in_no_log(site: Site) -> None:
    job_id = site.send()
    token = progress_token(job_id, secret=SECRET)
    url = site.proxy.url.replace("https", "wss") + f"/v1/jobs/{job_id}/ws?token={token}"
    with connect(url, ssl=site.tls, additional_headers={"Origin": site.proxy.url}) as websocket:
        for text in websocket:
            job = json.loads(text)["job"]
            if job["progress"]:
                site.take_step(job["progress"]["done"])
    assert (job["state"], websocket.close_code) == ("succeeded", 1000)
    referer = {"Referer": f"https://app.example.com/?token={token}"}
    assert site.client.get(f"/v1/jobs/{job_id}/events?token={token}", headers=referer).status_code == 200
    until(lambda: f"/v1/jobs/{job_id}/events" in site.proxy.access_log, "the line of the request")
    assert f"/v1/jobs/{job_id}/ws" in site.proxy.access_log
    assert token not in site.proxy.logs
    assert token.split(".")[-1] not in site.proxy.logs


def test_a_page_of_another_origin_opens_no_websocket(site: Site) -> None:
    job_id = site.send()
    token = progress_token(job_id, secret=SECRET)
    url = site.proxy.url.replace("https", "wss") + f"/v1/jobs/{job_id}/ws?token={token}"
    evil = {"Origin": "https://evil.example.com"}
    with pytest.raises(InvalidStatus, match="403"), connect(url, ssl=site.tls, additional_headers=evil):
        pass


def test_a_body_that_is_too_large_is_a_413_of_the_gateway_s_form(site: Site) -> None:
    body = json.dumps({"folder": "x" * (1024 * 1024)})
    headers = {**site.key, "Content-Type": "application/json"}
    problem(site.client.post("/v1/jobs/proxied.climb", content=body, headers=headers), 413, "body-too-large")
    response = site.client.post("/v1/jobs/proxied.climb", content=iter([body.encode()]), headers=headers)
    problem(response, 413, "body-too-large")


def test_a_body_that_the_gateway_takes_passes(site: Site) -> None:
    response = site.client.post("/v1/jobs/proxied.climb", json={"folder": "x", "text": "x" * 250_000}, headers=site.key)
    assert response.status_code == 202, response.text
    site.client.post(f"/v1/jobs/{response.json()['id']}/cancel?kind=proxied.climb", headers=site.key)


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/ready",
        "/startup",
        "//metrics",
        "/v1/../metrics",
        "/%6detrics",
        "/metrics/",
        "/",
        "/static/x",
        "/docs",
    ],
)
def test_only_what_is_listed_is_public(site: Site, path: str) -> None:
    answer = raw_get(site, path)
    assert answer.startswith("HTTP/1.1 404 "), answer
    assert "urn:penstock:problem:not-found" in answer


def raw_get(site: Site, path: str) -> str:
    """Answer to a path that is sent as it is: clients make `/metrics` of `//metrics` themselves."""
    host, port = "localhost", urlsplit(site.proxy.url).port or 0
    with (
        socket.create_connection(("127.0.0.1", port), 60) as plain,
        site.tls.wrap_socket(plain, server_hostname=host) as stream,
    ):
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: stream.recv(65536), b"")).decode()


def test_the_public_address_has_hsts_and_names_no_version(site: Site) -> None:
    response = site.client.get("/live")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert "max-age=" in response.headers["strict-transport-security"]
    assert "nginx/" not in response.headers["server"]


def test_the_doctor_has_nothing_to_say_about_the_public_address(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.proxy.authority))
    findings = list(review_public_address(site.proxy.url))
    assert len(findings) >= 3
    assert {finding.level for finding in findings} == {"OK"}, findings


def test_plain_http_is_refused_to_programs_and_redirected_for_pages(site: Site) -> None:
    with httpx.Client(base_url=site.proxy.plain_url, timeout=60) as client:
        refused = client.get("/v1/jobs/x", headers=site.key)
        assert (refused.status_code, refused.json()["detail"]) == (403, "use https")
        page = client.get("/flower/workers")
        assert (page.status_code, page.headers["location"]) == (301, "https://localhost/flower/workers")


def test_other_names_get_no_answer(site: Site) -> None:
    url = urlsplit(site.proxy.url)
    with (
        httpx.Client(verify=False, timeout=60) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get(f"https://127.0.0.1:{url.port}/live")
    with pytest.raises(httpx.TransportError):
        site.client.get("/live", headers={"Host": "evil.example.com"})


def test_callers_without_a_key_are_limited_and_those_with_one_are_not(site: Site) -> None:
    def ask(_: int) -> list[httpx.Response]:
        with httpx.Client(base_url=site.proxy.url, verify=site.tls, timeout=60) as client:
            return [client.get("/openapi.json") for _ in range(60)]

    def ask_together() -> list[httpx.Response]:
        with ThreadPoolExecutor(4) as pool:
            responses = [response for answers in pool.map(ask, range(4)) for response in answers]
        assert {response.status_code for response in responses} <= {401, 429}
        return [response for response in responses if response.status_code == 429]

    refused = until(ask_together, "more requests than the limit allows")
    problem(refused[0], 429, "rate-limited")
    assert refused[0].headers["retry-after"] == "1"
    assert {site.client.get("/openapi.json", headers=site.key).status_code for _ in range(100)} == {200}


def test_the_client_s_address_and_its_headers_reach_the_gateway(
    site: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with (
        running(
            [sys.executable, HERE / "address_app.py", str(port)],
            tmp_path / "app.log",
            environment=environment,
            ready=lambda _: listens(port),
        ),
        nginx(tmp_path / "nginx", gateways=[port], flower=free_port()) as proxy,
    ):
        tls = ssl.create_default_context(cafile=str(proxy.authority))
        transport = httpx.HTTPTransport(local_address="127.0.0.2", verify=tls)
        with httpx.Client(base_url=proxy.url, transport=transport, timeout=60) as client:
            headers = {"X-Forwarded-For": "9.9.9.9", "X-Request-ID": "order-7", "traceparent": traceparent}
            response = client.get("/v1/address", headers=headers)
            received = response.json()
            made_up = client.get("/v1/address", headers={"X-Request-ID": 'x"\\y'}).json()["x-request-id"]
    assert (received["client"], received["scheme"]) == ("127.0.0.2", "https")
    assert (received["x-request-id"], received["traceparent"]) == ("order-7", traceparent)
    assert received["host"] == urlsplit(proxy.url).netloc
    assert response.headers["x-request-id"] == "order-7"
    assert len(made_up) == 32
    line = json.loads(proxy.access_log.splitlines()[0])
    assert (line["address"], line["request_id"], line["traceparent"]) == ("127.0.0.2", "order-7", traceparent)


def test_an_upstream_that_is_down_is_a_503(site: Site, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", gateways=[free_port()], flower=free_port()) as proxy:
        tls = ssl.create_default_context(cafile=str(proxy.authority))
        token = "abcdefgh.12345678"
        with httpx.Client(base_url=proxy.url, verify=tls, timeout=60) as client:
            response = client.get(f"/v1/jobs/x/events?token={token}")
            problem(response, 503, "gateway-unavailable")
            assert response.headers["retry-after"] == "5"
            page = client.get("/flower/")
            assert (page.status_code, page.text) == (503, "Flower is unavailable\n")
        until(lambda: '"upstream_status":"502"' in proxy.access_log, "the line with the upstream's status")
        assert token not in proxy.logs


def test_a_gateway_that_is_stopped_is_passed_over(site: Site, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", gateways=[free_port(), site.gateway], flower=free_port()) as proxy:
        tls = ssl.create_default_context(cafile=str(proxy.authority))
        with httpx.Client(base_url=proxy.url, verify=tls, timeout=60) as client:
            answers = [client.post("/v1/jobs/proxied.none", json={}, headers=site.key) for _ in range(20)]
    for response in answers:
        problem(response, 404, "unknown-kind")
    assert "502, 404" in proxy.access_log


def test_limits_are_those_of_the_gateway() -> None:
    limits, text = GatewaySettings(), CONF.read_text()
    values = dict(re.findall(r"^ +((?:client|large)_\w+) +(.+);", text, re.MULTILINE))
    count, kilobytes = values["large_client_header_buffers"].removesuffix("k").split()
    assert int(values["client_max_body_size"].removesuffix("m")) * 1024 * 1024 == limits.max_body_bytes
    assert int(values["client_body_timeout"].removesuffix("s")) == limits.body_timeout_seconds
    assert int(values["client_header_timeout"].removesuffix("s")) == connections.HEAD_SECONDS
    assert int(count) * int(kilobytes) * 1024 == connections.MOST_HEAD_BYTES


# ---- Flower


def test_flower_s_pages_files_and_links_are_below_its_prefix(site: Site) -> None:
    refused = site.client.get("/flower/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    redirected = site.client.get("/flower")
    assert (redirected.status_code, redirected.headers["location"]) == (301, "/flower/")
    job_id = site.send()
    until(lambda: flower(site, f"/flower/task/{job_id}").status_code == 200, "the job in Flower")
    until(lambda: "climber" in flower(site, "/flower/workers").text, "the worker in Flower")
    [worker] = [name for name in flower(site, "/flower/api/workers?refresh=1").json() if "climber" in name]
    links: set[str] = set()
    for path in (
        "/flower/",
        "/flower/workers",
        f"/flower/worker/{worker}",
        "/flower/tasks",
        f"/flower/task/{job_id}",
        "/flower/broker",
    ):
        page = flower(site, path)
        assert page.status_code == 200, (path, page.text[:500])
        links |= {urljoin(path, link) for link in page_links(page.text)}
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("/flower/", "https://"))] == []
    statuses = {link: flower(site, link).status_code for link in sorted(links) if link.startswith("/")}
    assert {link: status for link, status in statuses.items() if status != 200} == {}
    assert any(link.endswith(".js") or ".js?" in link for link in statuses)
    site.client.post(f"/v1/jobs/{job_id}/cancel", headers=site.key)


def page_links(text: str) -> set[str]:
    """Addresses of a page: of its links, scripts, styles and images."""
    addresses: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            addresses.update(value for name, value in attrs if name in ("href", "src", "action") and value)

    Reader().feed(text)
    return {address for address in addresses if not address.startswith("#")}


def flower(site: Site, path: str) -> httpx.Response:
    return site.client.get(path, headers=BASIC)


def test_acts_in_flower_pass_the_proxy_for_its_own_pages_only(site: Site) -> None:
    url = "/flower/api/task/revoke/none-of-ours"
    own = {**BASIC, "Origin": site.proxy.url, "Sec-Fetch-Site": "same-origin"}
    assert site.client.post(url, headers=own).status_code == 200
    assert site.client.post(url, headers={**BASIC, "Origin": site.proxy.url}).status_code == 200
    for other in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example.com"}):
        assert site.client.post(url, headers={**BASIC, **other}).status_code == 403
    assert "frame-ancestors 'none'" in flower(site, "/flower/").headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/flower/metrics", "/flower//metrics", "/flower/healthcheck"])
def test_flower_s_metrics_are_not_public(site: Site, path: str) -> None:
    assert raw_get(site, path).startswith("HTTP/1.1 404 ")
