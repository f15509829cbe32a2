"""Processes and settings of `penstock up`."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from penstock.config.errors import ConfigError
from penstock.config.settings import QueueSettings, Settings
from penstock.workers.local.up import layout
from penstock.workers.local.up.layout import engine_of, plan, write_environment
from penstock.workers.local.up.ports import PortInUse, is_free
from penstock.workers.local.up.redis_server import free_port


def ports() -> dict[str, int]:
    return {"flower_port": free_port(), "gateway_port": free_port()}


def test_the_built_in_queues_are_work_for_both_engines_unless_the_file_says_otherwise() -> None:
    nothing = Settings()
    assert [engine_of(nothing, name) for name in ("uploads", "reports", "emails", "syncs", "default")] == [
        "dramatiq",
        "dramatiq",
        "celery",
        "celery",
        "celery",
    ]
    file = Settings(
        queues={
            "uploads": QueueSettings(engine="celery"),
            "emails": QueueSettings(engine="dramatiq"),
            "syncs": QueueSettings(concurrency=7),
        }
    )
    assert [engine_of(file, name) for name in ("uploads", "emails", "syncs")] == ["celery", "dramatiq", "celery"]


def test_unconfigured_services_are_in_the_folder(tmp_path: Path) -> None:
    layout = plan(Settings(), tmp_path, environment={}, **ports())
    password = (tmp_path / "redis.password").read_text().strip()
    assert len(password) >= 16
    assert layout.settings.broker_url == f"redis://:{password}@127.0.0.1:{layout.redis_port}/0"
    assert layout.settings.database_url == f"sqlite:///{tmp_path}/penstock.db"
    assert layout.settings.storage_url == f"file:{tmp_path}/storage"
    assert layout.settings.smtp_url == f"maildir:{tmp_path}/mail"


def test_configured_services_are_used_and_no_redis_is_started(tmp_path: Path) -> None:
    settings = Settings(broker_url="amqp://mq.example.com", smtp_url="smtp://mail.example.com")
    layout = plan(settings, tmp_path, environment={}, **ports())
    assert layout.redis_port is None
    assert layout.environment["PENSTOCK_BROKER_URL"] == "amqp://mq.example.com"
    assert layout.environment["PENSTOCK_SMTP_URL"] == "smtp://mail.example.com"
    assert layout.settings.storage_url == f"file:{tmp_path}/storage"


def test_the_login_of_flower_stays_the_same_and_is_for_its_owner_only(tmp_path: Path) -> None:
    logins = {plan(Settings(), tmp_path, environment={}, **ports()).flower_auth for _ in range(2)}
    assert len(logins) == 1
    assert stat.S_IMODE((tmp_path / "flower.password").stat().st_mode) == 0o600
    environment = {layout.BASIC_AUTH: "ada:secret"}
    assert plan(Settings(), tmp_path, environment=environment, **ports()).flower_auth == "ada:secret"


def test_redis_takes_the_port_of_the_last_time_if_it_is_free(tmp_path: Path) -> None:
    first = plan(Settings(), tmp_path, environment={}, **ports())
    write_environment(first)
    again = plan(Settings(), tmp_path, environment={}, **ports())
    assert again.settings.broker_url == first.settings.broker_url
    assert stat.S_IMODE(first.environment_file.stat().st_mode) == 0o600
    assert first.redis_port is not None
    assert plan(Settings(), tmp_path, environment={}, **ports()).redis_port == first.redis_port
    with socket.create_server(("127.0.0.1", first.redis_port)):
        assert plan(Settings(), tmp_path, environment={}, **ports()).redis_port != first.redis_port


def test_redis_takes_the_port_of_a_time_before_it_had_a_password(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "penstock.env").write_text(f"export PENSTOCK_BROKER_URL=redis://127.0.0.1:{port}/0\n")
    assert plan(Settings(), tmp_path, environment={}, **ports()).redis_port == port


@pytest.mark.parametrize("text", ["0", "70000", "redis", ""])
def test_a_port_that_is_none_is_an_error_that_names_the_variable(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_FLOWER_PORT", text)
    with pytest.raises(ConfigError, match="PENSTOCK_FLOWER_PORT"):
        plan(Settings(), tmp_path, environment={})


def test_a_port_that_is_taken_on_all_addresses_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("0.0.0.0", 0)) as busy:
        port = busy.getsockname()[1]
        assert not is_free(port)
        monkeypatch.setenv("PENSTOCK_FLOWER_PORT", str(port))
        with pytest.raises(PortInUse, match=str(port)) as caught:
            plan(Settings(), tmp_path, environment={})
    assert caught.value.port == port
