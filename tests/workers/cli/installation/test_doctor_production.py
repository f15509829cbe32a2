"""`penstock doctor --production`: each rule of the hardening list, broken by itself, and settings that keep all."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.certificates import Authority

from penstock.config.sections.console import ConsoleSettings, ConsoleUser
from penstock.config.sections.passwords import hash_password
from penstock.config.settings import Settings, load_settings
from penstock.ledger.members import api_keys, heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.workers.cli.doctor.production import review
from penstock.workers.cli.doctor.production.gateway import review_public_address
from penstock.workers.cli.doctor.production.machine import Machine
from penstock.workers.telemetry.findings import Finding

PASSWORD = "b1946ac92492d2347c62"
HARDENED = f"""
broker_url = "rediss://penstock:{PASSWORD}@broker.example.com:6379/0"
storage_url = "s3://penstock"
smtp_url = "smtps://penstock:{PASSWORD}@mail.example.com"
remote_control = "inspect"
flower_admins = ["ada"]
[gateway]
cors_origins = ["https://shop.example.com"]
[gateway.jwt]
jwks_url = "https://login.example.com/jwks.json"
issuer = "https://login.example.com"
audience = "penstock"
[webhooks.github]
scheme = "github"
secret = "${{GITHUB_SECRET}}"
[hooks.shop]
url = "https://shop.example.com/hook"
secret = "${{HOOK_SECRET}}"
allow_networks = ["10.1.0.0/16"]
"""
ENVIRONMENT = {"PENSTOCK_FLOWER_BASIC_AUTH": f"ada:{PASSWORD}"}
SOON = datetime.now(UTC) + timedelta(days=90)
MACHINE = Machine(uid=10001, umask=0o077, environment=ENVIRONMENT)


@pytest.fixture
def hardened(workplace: Path, ledger: Database, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that keep every rule, with a key that does; what they hold is in `workplace`, closed to others."""
    for name in ("BROKER_URL", "STORAGE_URL"):
        monkeypatch.delenv(f"PENSTOCK_{name}")
    monkeypatch.setenv("GITHUB_SECRET", f"{PASSWORD}{PASSWORD}")
    monkeypatch.setenv("HOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    monkeypatch.setenv("PENSTOCK_TOKEN_SECRET", f"{PASSWORD}{PASSWORD}")
    api_keys.add(ledger, "shop", kinds=["invoice.*"], verbs=["send"], expires_at=SOON)
    for file in workplace.iterdir():
        file.chmod(0o600)
    (workplace / "penstock.toml").write_text(HARDENED)
    (workplace / "penstock.toml").chmod(0o640)
    return load_settings()


def notable(settings: Settings, machine: Machine = MACHINE) -> dict[str, Finding]:
    """Findings that are not OK, without the one about TLS in front of the gateway, which needs its address."""
    findings = {finding.check: finding for finding in review(settings, machine)}
    assert findings.pop("gateway: TLS").level == "WARN"
    assert all(finding.advice for finding in findings.values() if finding.level != "OK")
    return {check: finding for check, finding in findings.items() if finding.level != "OK"}


def test_a_hardened_installation_passes(hardened: Settings) -> None:
    assert notable(hardened) == {}


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"broker_url": f"redis://:{PASSWORD}@broker:6379/0"}, "encryption of broker_url", "FAIL"),
        ({"broker_url": f"redis+sentinel://:{PASSWORD}@a:1,b:2/0?master=m"}, "encryption of broker_url", "FAIL"),
        ({"broker_url": f"rediss://:{PASSWORD}@broker/0?ssl_cert_reqs=none"}, "encryption of broker_url", "FAIL"),
        ({"broker_url": f"amqp://ada:{PASSWORD}@broker//"}, "encryption of broker_url", "FAIL"),
        ({"broker_url": f"amqps://a:{PASSWORD}@b//?ssl_check_hostname=false"}, "encryption of broker_url", "FAIL"),
        ({"limits_url": f"redis://:{PASSWORD}@limits/0"}, "encryption of limits_url", "FAIL"),
        ({"rabbitmq_management_url": "http://broker:15672"}, "encryption of rabbitmq_management_url", "FAIL"),
        (
            {"database_direct_url": f"postgresql+psycopg://a:{PASSWORD}@d/p"},
            "encryption of database_direct_url",
            "FAIL",
        ),
        (
            {"database_direct_url": f"postgresql+psycopg://a:{PASSWORD}@d/p?sslmode=require"},
            "encryption of database_direct_url",
            "WARN",
        ),
        ({"outbox_urls": (f"mysql+pymysql://a:{PASSWORD}@d/p",)}, "encryption of outbox_urls[0]", "FAIL"),
        ({"outbox_urls": (f"mysql+pymysql://a:{PASSWORD}@d/p?ssl_key=k",)}, "encryption of outbox_urls[0]", "WARN"),
        ({"smtp_url": f"smtp://ada:{PASSWORD}@mail.example.com"}, "encryption of smtp_url", "FAIL"),
        ({"storage_url": "s3://penstock?endpoint_url=http://storage:8333"}, "encryption of storage_url", "FAIL"),
        ({"broker_url": "rediss://broker/0"}, "password of broker_url", "FAIL"),
        ({"broker_url": "rediss://:guest@broker/0"}, "password of broker_url", "FAIL"),
        ({"broker_url": "amqps://broker//"}, "password of broker_url", "FAIL"),
        ({"broker_url": "amqps://penstock-web-1:penstock-web-1@broker//"}, "password of broker_url", "FAIL"),
        ({"broker_url": "redis://127.0.0.1/0"}, "password of broker_url", "FAIL"),
        ({"outbox_urls": ("postgresql+psycopg://a@127.0.0.1/p",)}, "password of outbox_urls[0]", "WARN"),
        ({"outbox_urls": (f"postgresql+psycopg://postgres:{PASSWORD}@[::1]/p",)}, "password of outbox_urls[0]", "WARN"),
        ({"smtp_url": "maildir:mail"}, "delivery of smtp_url", "WARN"),
        ({"token_secret": None}, "token_secret", "WARN"),
        ({"token_secret": "sixteen and more"}, "token_secret", "FAIL"),
        ({"token_secret": "ab" * 20}, "token_secret", "FAIL"),
        ({"max_message_bytes": 64 * 1024 * 1024}, "max_message_bytes", "WARN"),
        ({"remote_control": "all"}, "remote control", "WARN"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_named(
    hardened: Settings, changes: dict[str, Any], check: str, level: str
) -> None:
    assert {name: finding.level for name, finding in notable(hardened.model_copy(update=changes)).items()} == {
        check: level
    }


@pytest.mark.parametrize(
    ("before", "after", "check", "level"),
    [
        ('["https://shop.example.com"]', '["http://shop.example.com"]', "gateway: CORS", "FAIL"),
        ("[gateway]", "[gateway]\nrequests_per_second = inf", "gateway: rate limit", "FAIL"),
        ("https://login.example.com/jwks", "http://login.example.com/jwks", "gateway: identity provider", "FAIL"),
        ("https://shop.example.com/hook", "http://shop.example.com/hook", "target of hooks.shop", "FAIL"),
        ("10.1.0.0/16", "169.254.169.254/32", "target of hooks.shop", "FAIL"),
        ("10.1.0.0/16", "0.0.0.0/0", "target of hooks.shop", "FAIL"),
        ("10.1.0.0/16", "::1", "target of hooks.shop", "FAIL"),
        ("${HOOK_SECRET}", "whsec_c2hvcnQ=", "secret of hooks.shop", "FAIL"),
        ("${HOOK_SECRET}", "${NO_SUCH_VARIABLE}", "secret of hooks.shop", "FAIL"),
        ("${GITHUB_SECRET}", "short", "secret of webhooks.github", "FAIL"),
        ("[gateway]", '[retention]\nsucceeded = "never"\n[gateway]', "retention", "WARN"),
    ],
)
def test_a_line_of_the_file_that_breaks_a_rule_is_named(
    hardened: Settings, workplace: Path, before: str, after: str, check: str, level: str
) -> None:
    file = workplace / "penstock.toml"
    file.write_text(HARDENED.replace(before, after))
    file.chmod(0o640)
    assert {name: finding.level for name, finding in notable(load_settings()).items()} == {check: level}


def test_origins_cannot_be_all() -> None:
    with pytest.raises(ValueError, match="not an origin"):
        Settings(gateway={"cors_origins": ["*"]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "check", "level"),
    [
        ({}, "Flower: login", "WARN"),
        ({"PENSTOCK_FLOWER_BASIC_AUTH": "admin:admin"}, "Flower: login", "FAIL"),
        ({"PENSTOCK_FLOWER_BASIC_AUTH": PASSWORD}, "Flower: login", "FAIL"),
        ({**ENVIRONMENT, "FLOWER_AUTH": "ada@example.com"}, "Flower: sessions", "WARN"),
        ({**ENVIRONMENT, "FLOWER_AUTH": "a@b.c", "FLOWER_COOKIE_SECRET": "short"}, "Flower: sessions", "FAIL"),
        ({**ENVIRONMENT, "PYTHONDEVMODE": "1"}, "debugging", "FAIL"),
    ],
)
def test_an_environment_that_breaks_a_rule_is_named(
    hardened: Settings, environment: Mapping[str, str], check: str, level: str
) -> None:
    machine = replace(MACHINE, environment=environment)
    assert {name: finding.level for name, finding in notable(hardened, machine).items()} == {check: level}


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"uid": 0}, "user", "FAIL"),
        ({"umask": 0}, "umask", "FAIL"),
        ({"umask": 0o022}, "umask", "WARN"),
    ],
)
def test_a_process_that_breaks_a_rule_is_named(
    hardened: Settings, change: dict[str, int], check: str, level: str
) -> None:
    machine = replace(MACHINE, **change)  # type: ignore[arg-type]
    assert {name: finding.level for name, finding in notable(hardened, machine).items()} == {check: level}


@pytest.mark.parametrize("name", ["var", "storage", "mail"])
def test_data_that_others_may_read_are_named(hardened: Settings, workplace: Path, name: str) -> None:
    """Not those of the ledger: they are closed to others when it is opened, and the command opens it."""
    path = workplace / name
    path.mkdir()
    path.chmod(0o750)
    settings = hardened.model_copy(update={"storage_url": "file:storage", "smtp_url": "maildir:mail"})
    finding = notable(settings)["file modes"]
    assert (finding.level, f"{name} (0750)" in finding.detail) == ("FAIL", True)


def test_a_configuration_file_that_others_may_change_is_named(hardened: Settings, workplace: Path) -> None:
    (workplace / "penstock.toml").chmod(0o664)
    assert notable(load_settings())["mode of penstock.toml"].level == "FAIL"


def test_passwords_in_a_configuration_file_for_everyone_are_named_and_not_shown(
    hardened: Settings, workplace: Path
) -> None:
    finding = notable_of_file(workplace, 0o644)
    assert (finding.level, "broker_url" in finding.detail, PASSWORD in finding.detail) == ("FAIL", True, False)
    assert notable_of_file(workplace, 0o640).level == "OK"


def notable_of_file(workplace: Path, mode: int) -> Finding:
    file = workplace / "penstock.toml"
    file.chmod(mode)
    [finding] = [item for item in review(load_settings(), MACHINE) if item.check == "mode of penstock.toml"]
    return finding


def test_logins_that_are_all_admins_are_named(hardened: Settings) -> None:
    unnamed = hardened.model_copy(update={"flower_admins": None})
    assert notable(unnamed) == {}, "the one login of the environment is the admin"
    several = replace(MACHINE, environment={**ENVIRONMENT, "FLOWER_BASIC_AUTH": f"bob:{PASSWORD}"})
    assert notable(unnamed, several).keys() == {"Flower: acts"}
    oauth = {"FLOWER_AUTH": ".*@example.com", "FLOWER_COOKIE_SECRET": f"{PASSWORD}{PASSWORD}"}
    assert notable(unnamed, replace(MACHINE, environment=oauth)).keys() == {"Flower: acts"}
    roles = ConsoleSettings(roles={"*@example.com": "viewer"})
    named = unnamed.model_copy(update={"console": roles})
    assert notable(named, replace(MACHINE, environment=oauth)) == {}


def test_users_with_hashes_and_a_proxy_are_logins(hardened: Settings) -> None:
    no_login = replace(MACHINE, environment={})
    user = ConsoleUser(name="ada", password_hash=hash_password(PASSWORD))
    assert notable(hardened.model_copy(update={"console": ConsoleSettings(users=(user,))}), no_login) == {}
    proxy = {"proxy_header": "X-Forwarded-User", "roles": {"*": "viewer"}}
    assert notable(hardened.model_copy(update={"console": ConsoleSettings(**proxy)}), no_login) == {}
    wide = ConsoleSettings(**proxy, proxies=("0.0.0.0/0",), metrics_login=False)
    matching = notable(hardened.model_copy(update={"console": wide}), no_login)
    assert {name: finding.level for name, finding in matching.items()} == {
        "Flower: proxy": "FAIL",
        "Flower: metrics": "WARN",
    }


def test_keys_without_kinds_verbs_or_an_end_are_named(hardened: Settings, ledger: Database) -> None:
    _text, endless = api_keys.add(ledger, "endless", kinds=["invoice.*"], verbs=["send"])
    finding = notable(hardened)["gateway: keys"]
    assert (finding.level, "endless" in finding.detail) == ("WARN", True)
    _text, mighty = api_keys.add(ledger, "mighty", kinds=["invoice.*"], expires_at=SOON)
    finding = notable(hardened)["gateway: keys"]
    assert (finding.level, "mighty" in finding.detail) == ("WARN", True)
    _text, unbound = api_keys.add(ledger, "unbound")
    finding = notable(hardened)["gateway: keys"]
    assert (finding.level, "unbound" in finding.detail) == ("FAIL", True)
    for key in (endless, mighty, unbound):
        api_keys.revoke(ledger, key.id)
    assert notable(hardened) == {}


def test_sqlite_or_a_folder_for_several_machines_is_named(hardened: Settings, ledger: Database) -> None:
    lease = timedelta(minutes=5)
    for number in (1, 2):
        heartbeats.register(ledger, f"worker-{number}", engine="celery", queues=["notes"], kinds={}, lease=lease)
    assert notable(hardened) == {}  # one machine
    ledger.write(
        lambda connection: connection.execute(
            sa.update(workers).where(workers.c.name == "worker-2").values(host="another")
        )
    )
    changed = hardened.model_copy(update={"storage_url": "file:storage"})
    assert {name: finding.level for name, finding in notable(changed).items()} == {
        "ledger: hosts": "FAIL",
        "storage: hosts": "FAIL",
    }


@pytest.fixture
def public_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], str]]:
    """Start a proxy's public side that sends this HSTS header, and answers `/metrics` with this status."""
    authority = Authority(tmp_path / "ca")
    certificate = authority.issue("gateway", "DNS:localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    started: list[ThreadingHTTPServer] = []

    def start(hsts: str, metrics: int) -> str:
        class Proxy(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(metrics if self.path == "/metrics" else 200)
                if hsts:
                    self.send_header("Strict-Transport-Security", hsts)
                self.end_headers()

            def log_message(self, *_values: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.file, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"https://localhost:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def levels(url: str) -> dict[str, str]:
    return {finding.check.removeprefix("gateway: "): finding.level for finding in review_public_address(url)}


def test_the_gateway_s_public_address_is_looked_at(
    public_address: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = public_address("max-age=31536000; includeSubDomains", 404)
    assert levels(url) == {"TLS": "OK", "HSTS": "OK", "metrics": "OK"}
    assert levels(public_address("max-age=60", 200)) == {"TLS": "OK", "HSTS": "WARN", "metrics": "WARN"}
    assert levels("http://localhost") == {"TLS": "FAIL"}
    monkeypatch.delenv("SSL_CERT_FILE")
    assert levels(url) == {"TLS": "FAIL"}  # a certificate of a CA that the machine does not know


def test_the_command_prints_a_level_and_what_to_do_and_fails(penstock: Callable[..., Any], ledger: Database) -> None:
    done = penstock("doctor", "--production")
    assert done.code == 1
    [login] = [line for line in done.out.splitlines() if "Flower: login" in line]
    assert login.startswith("WARN  Flower: login")
    assert {line.split()[0] for line in done.out.splitlines()} == {"OK", "WARN", "FAIL", "To"}
    listed = penstock("doctor", "--production", "--json")
    assert listed.code == 1
    by_check = {entry["check"]: entry for entry in listed.json}
    assert by_check["password of broker_url"]["level"] == "FAIL"
    assert not by_check["password of broker_url"]["ok"]
    assert by_check["ledger"]["ok"]
    assert {line.split()[0] for line in penstock("doctor").out.splitlines()} == {"ok", "WRONG", "To"}


def test_an_address_without_production_is_refused(penstock: Callable[..., Any]) -> None:
    done = penstock("doctor", "--gateway-url", "https://gateway.example.com")
    assert (done.code, "goes with --production" in done.err) == (2, True)


def test_the_umask_is_read_and_left_as_it_was() -> None:
    before = os.umask(0o027)
    try:
        assert Machine.here().umask == 0o027
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
