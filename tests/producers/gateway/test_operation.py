"""Probes, metrics, CORS, the OpenAPI document, and the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from support.gateways import INVOICE, Gateway, Open, problem
from support.polling import until

from penstock.config.errors import ConfigError
from penstock.config.sections.gateway import GatewaySettings
from penstock.config.settings import load_settings
from penstock.ledger.members import api_keys
from penstock.ledger.rows import audit
from penstock.workers.local.up.redis_server import free_port


def test_the_gateway_is_alive_and_ready(gateway: Gateway) -> None:
    assert gateway.client.get("/health").json() == {"status": "ok"}
    assert gateway.client.get("/ready").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("setting", "url", "name"),
    [
        ("broker_url", "redis://127.0.0.1:1/0", "broker-unavailable"),
        ("database_url", "postgresql+psycopg://nobody@127.0.0.1:1/none", "ledger-unavailable"),
        ("database_url", "sqlite://", "ledger-unavailable"),  # no tables there
    ],
)
def test_the_gateway_is_alive_but_not_ready_without_broker_or_ledger(
    gateway: Gateway, open_gateway: Open, setting: str, url: str, name: str
) -> None:
    unavailable = open_gateway(gateway.settings.model_copy(update={setting: url}))
    assert unavailable.client.get("/health").status_code == 200
    problem(unavailable.client.get("/ready"), 503, name)


def test_metrics_count_requests_and_jobs(open_gateway: Open) -> None:
    gateway = open_gateway()
    key = gateway.key()
    for number in range(3):
        gateway.client.post("/v1/jobs/gateway.invoice", json={**INVOICE, "number": number}, headers=key)
    gateway.client.get("/nothing/at/all")
    text = gateway.client.get("/metrics").text
    assert 'penstock_gateway_jobs_total{kind="gateway.invoice"} 3.0' in text
    assert 'penstock_gateway_request_seconds_count{method="POST",route="/v1/jobs/{kind}",status="202"} 3.0' in text
    assert 'route="none",status="404"} 1.0' in text
    assert "/nothing" not in text


def test_pages_of_other_origins_are_kept_out_unless_they_are_listed(gateway: Gateway, open_gateway: Open) -> None:
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    closed = gateway.client.options("/v1/jobs", headers=preflight)
    assert "access-control-allow-origin" not in closed.headers
    open_ = open_gateway(cors_origins=["https://app.example.com"])
    listed = open_.client.options("/v1/jobs", headers=preflight)
    assert listed.headers["access-control-allow-origin"] == "https://app.example.com"
    other = open_.client.options("/v1/jobs", headers={**preflight, "Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers


def test_the_document_has_an_operation_for_each_kind(gateway: Gateway) -> None:
    problem(gateway.client.get("/openapi.json"), 401, "unauthenticated")
    document = gateway.client.get("/openapi.json", headers=gateway.key()).json()
    operation = document["paths"]["/v1/jobs/gateway.invoice"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = {"$ref": reference, "components": document["components"]}
    checked = Draft202012Validator(schema)
    assert checked.is_valid({**INVOICE, "lines": [{"article": "x", "count": 1}]})
    assert not checked.is_valid({**INVOICE, "lines": [{"article": "x"}]})
    assert {"name": "delay", "in": "query"}.items() <= operation["parameters"][0].items()
    for name in references(document):
        assert name in document["components"]["schemas"], f"{name} is referred to and not there"


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        targets = {node["$ref"].rpartition("/")[2]} if isinstance(node.get("$ref"), str) else set()
        return targets.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_kinds_are_listed_with_their_schemas(gateway: Gateway) -> None:
    answer = gateway.client.get("/v1/kinds", headers=gateway.key(kinds=["*"]))
    kinds = {kind["kind"]: kind for kind in answer.json()["kinds"]}
    assert {"gateway.invoice", "email.send", "report.build", "sync.run", "upload.process"} <= set(kinds)
    invoice = kinds["gateway.invoice"]
    assert (invoice["queue"], invoice["version"], invoice["aliases"]) == ("invoices", 1, ["gateway.bill"])
    assert invoice["schema"]["properties"]["number"]["type"] == "integer"
    assert gateway.client.get("/v1/kinds/gateway.bill", headers=gateway.key()).json() == invoice
    problem(gateway.client.get("/v1/kinds/no.such", headers=gateway.key()), 404, "unknown-kind")


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[gateway]\nmax_bodies = 1", "gateway.max_bodies: unknown setting"),
        ('[gateway]\ncors_origins = ["*"]', "is not an origin"),
        ('[gateway]\ncors_origins = ["https://a.example.com/path"]', "is not an origin"),
        ('[gateway.jwt]\njwks_url = "file:///etc/passwd"\nissuer = "a"\naudience = "b"', "is not an http"),
        ('[gateway.jwt]\njwks_url = "https://a"\nissuer = "a"\naudience = "b"\nalgorithms = ["HS256"]', "HS256"),
        ('token_secret = "short"', "token_secret"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, toml: str, expected: str) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=str(file)) as error:
        load_settings(file)
    assert expected in str(error.value)


def test_the_settings_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("[gateway]\nmax_batch = 7\n")
    assert load_settings(file).gateway == GatewaySettings(max_batch=7)


def test_the_process_serves_the_kinds_that_it_imports_and_stops_in_order(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "shop_jobs.py").write_text(
        "from penstock.schemas import Job\nclass Order(Job, kind='shop.order'):\n    number: int\n"
    )
    settings = gateway.settings
    environment = os.environ | {
        "PENSTOCK_BROKER_URL": settings.broker_url,
        "PENSTOCK_DATABASE_URL": settings.database_url,
        "PENSTOCK_STORAGE_URL": settings.storage_url,
        "PENSTOCK_PREFIX": settings.prefix,
    }
    port = free_port()
    words = ["gateway", "--port", str(port), "--import", "shop_jobs"]
    code = "from penstock.workers.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                _wait_for(client, process)
                key = gateway.key()
                answer = client.post("/v1/jobs/shop.order", json={"number": 1}, headers=key)
                assert answer.status_code == 202
                with client.stream("GET", answer.headers["location"] + "/events", headers=key) as stream:
                    lines = stream.iter_lines()
                    while not next(lines).startswith("data: "):
                        pass
                    process.send_signal(signal.SIGTERM)
                    assert not [line for line in lines if line.startswith("event: end")]
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def _wait_for(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    def is_ready() -> bool:
        try:
            return client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    until(is_ready, "the gateway", unless=lambda: process.poll() is not None and f"it ended with {process.poll()}")


def test_a_process_with_a_wrong_setting_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from penstock.workers.cli import app

    monkeypatch.setenv("PENSTOCK_BROKER_URL", "kafka://127.0.0.1")
    result = CliRunner().invoke(app, ["gateway"])
    assert result.exit_code == 2
    assert "broker URL with scheme 'kafka'" in result.stderr


def test_the_document_can_be_written_without_a_server(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from penstock.workers.cli import app

    result = CliRunner().invoke(app, ["gateway", "openapi", "-o", str(tmp_path / "openapi.json")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "openapi.json").read_text())
    assert "/v1/jobs/email.send" in document["paths"]


def test_keys_are_made_listed_and_revoked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from penstock.workers.cli import app

    monkeypatch.setenv("PENSTOCK_DATABASE_URL", gateway.settings.database_url)
    add = ["gateway", "keys", "add", "shop", "--kind", "gateway.*", "--tenant", "acme", "--rate", "60/m", "--json"]
    assert CliRunner().invoke(app, [*add, "--verb", "delete"]).exit_code == 2
    add += ["--verb", "send", "--verb", "read", "--actor", "ada"]
    key = json.loads(CliRunner().invoke(app, [*add, "--expires-in", "1h"]).stdout)
    assert key["verbs"] == ["read", "send"]
    assert (key["kinds"], key["tenants"], key["queues"]) == (["gateway.*"], ["acme"], None)
    assert key["requests_per_second"] == 1.0
    keys = api_keys.find(gateway.database, key["key"])
    assert keys is not None
    assert keys.expires_at is not None
    answer = gateway.client.post(
        "/v1/jobs/gateway.invoice", json=INVOICE, headers={"Authorization": f"Bearer {key['key']}"}
    )
    assert answer.status_code == 202
    listed = CliRunner().invoke(app, ["gateway", "keys", "list"]).stdout
    assert key["id"] in listed
    assert "read, send" in listed
    assert key["key"] not in listed
    assert CliRunner().invoke(app, ["gateway", "keys", "revoke", key["id"], "--actor", "bob"]).exit_code == 0
    assert CliRunner().invoke(app, ["gateway", "keys", "revoke", key["id"], "--actor", "eve"]).exit_code == 0
    [row] = json.loads(CliRunner().invoke(app, ["gateway", "keys", "list", "--json"]).stdout)
    assert (row["holds"], row["id"], row["verbs"]) == (False, key["id"], ["read", "send"])
    revoked, added = audit.find(gateway.database, subject=key["id"])
    assert (revoked.actor, revoked.act, revoked.subject_kind) == ("bob", "revoke", "API key")
    assert (added.actor, added.act, added.detail["verbs"], added.detail["tenants"]) == (
        "ada",
        "add",
        ["read", "send"],
        ["acme"],
    )
    assert key["key"] not in str(added.detail)
    assert CliRunner().invoke(app, ["gateway", "keys", "revoke", "nonsense"]).exit_code == 1


def test_answers_are_neither_cached_nor_rendered_nor_framed(gateway: Gateway) -> None:
    for answer in (gateway.client.get("/live"), gateway.client.get("/v1/kinds"), gateway.client.get("/nothing")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_trace_is_not_a_method(gateway: Gateway) -> None:
    problem(gateway.client.request("TRACE", "/v1/kinds", headers=gateway.key()), 405, "method-not-allowed")
