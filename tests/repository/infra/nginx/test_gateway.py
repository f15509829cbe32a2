"""`infra/nginx/penstock.conf` in a real nginx, in front of a real gateway and worker."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from repository.infra.nginx.site import CONF, HERE, STEPS, Site, nginx
from repository.infra.processes import listens, running
from support.gateways import SECRET, problem
from support.polling import until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from penstock.config.sections.gateway import GatewaySettings
from penstock.producers.gateway import connections
from penstock.producers.tokens import progress_token
from penstock.workers.cli.doctor.production.gateway import review_public_address
from penstock.workers.local.up.redis_server import free_port

pytestmark = pytest.mark.slow


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
    """The protocol of browsers."""
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
    answer = site.raw_get(path)
    assert answer.startswith("HTTP/1.1 404 "), answer
    assert "urn:penstock:problem:not-found" in answer


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
