"""`infra/systemd`: the units as systemd reads them, and their commands at work, on the way of docs/deploying.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from repository.infra.files import CONFIG, DEPLOYING, INFRA, SERVICES, UNITS, seconds, unit_command, unit_setting
from repository.infra.processes import PENSTOCK, running
from support.polling import WAIT_SECONDS

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import current, head
from penstock.workers.local.up.layout import is_registered
from penstock.workers.local.up.redis_server import RedisServer, free_port

unit_name = pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)


@unit_name
def test_a_unit_stops_by_sigterm_and_comes_back(unit: Path) -> None:
    assert unit_setting(unit, "KillSignal") == "SIGTERM"
    assert unit_setting(unit, "KillMode") == "mixed"
    assert unit_setting(unit, "Restart") == "always"
    assert seconds(unit_setting(unit, "TimeoutStopSec")) > Settings.model_fields["grace_seconds"].default + 10


def test_a_migration_runs_once_before_the_others() -> None:
    [unit] = set(UNITS) - set(SERVICES)
    text = unit.read_text()
    assert not re.search("^(Restart|WantedBy)=", text, re.MULTILINE)
    for service in SERVICES:
        assert unit.name in unit_setting(service, "After").split()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_for_a_user_of_its_own_and_what_it_writes_for_that_user_alone(unit: Path) -> None:
    assert unit_setting(unit, "User") == "penstock"
    assert unit_setting(unit, "UMask") == "0077"
    assert unit_setting(unit, "StateDirectoryMode") == "0700"
    assert not re.search(r"\$\{PENSTOCK_", unit_setting(unit, "ExecStart"))


def test_all_units_are_confined_in_the_same_way() -> None:
    parts = {
        re.search(r"^StateDirectory=.*?^SystemCallErrorNumber=\w+$", unit.read_text(), re.M | re.S)[0] for unit in UNITS
    }  # type: ignore[index]
    assert len(parts) == 1
    assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="} <= set(parts.pop().splitlines())


def test_a_gateway_has_the_file_descriptors_that_its_connections_need() -> None:
    limit = int(unit_setting(INFRA / "systemd/penstock-gateway@.service", "LimitNOFILE"))
    assert limit > Settings().gateway.max_connections + 128


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault_in(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/penstock/bin/penstock", "/bin/true"))
    result = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True)
    about_it = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, about_it) == (0, []), result.stderr


# ---- At work


def documented(first: str) -> dict[str, str]:
    """The lines of an environment file on the page, by its first variable."""
    [block] = re.findall(rf"^    {first}=.*\n(?:^    \w+=.*\n)*", DEPLOYING.read_text(), re.MULTILINE)
    return dict(line.strip().split("=", 1) for line in block.splitlines())


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=10) as response:
        return bool(response.status == 200)
    return False


@pytest.mark.slow
@pytest.mark.postgres
def test_the_units_commands_start_become_ready_and_stop_in_time(
    redis_server: RedisServer, postgres_url: str, prefix: str, tmp_path: Path
) -> None:
    """In the order and with the environment of the page."""
    shared, pool = documented("PENSTOCK_BROKER_URL"), documented("WORKER_ENGINE")
    environment = {
        "PENSTOCK_BROKER_URL": redis_server.url,
        "PENSTOCK_LIMITS_URL": redis_server.url,
        "PENSTOCK_DATABASE_URL": postgres_url,
        "PENSTOCK_STORAGE_URL": f"file:{tmp_path}/storage",
        "PENSTOCK_SMTP_URL": f"maildir:{tmp_path}/mail",
        "PENSTOCK_TOKEN_SECRET": "long enough for a secret",
        "PENSTOCK_FLOWER_BASIC_AUTH": shared["PENSTOCK_FLOWER_BASIC_AUTH"],
    }
    assert set(environment) == set(shared)
    environment |= {"PENSTOCK_CONFIG": str(CONFIG), "PENSTOCK_PREFIX": prefix}
    gateway, flower = str(free_port()), str(free_port())

    def command(name: str, instance: str = "") -> list[str | Path]:
        words = unit_command(INFRA / f"systemd/{name}.service", instance, pool)
        return [PENSTOCK, *(flower if word == "5555" else word for word in words)]

    migration = subprocess.run(
        command("penstock-migrate"),
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert migration.returncode == 0, migration.stderr
    database = Database(postgres_url)
    assert current(database) == head()

    def has_joined(process: subprocess.Popen[bytes]) -> bool:
        return is_registered(database, process.pid)

    services: dict[str, tuple[list[str | Path], Callable[[subprocess.Popen[bytes]], bool]]] = {
        "penstock-worker@": (command("penstock-worker@", "mail"), has_joined),
        "penstock-dispatcher": (command("penstock-dispatcher"), has_joined),
        "penstock-gateway@": (
            command("penstock-gateway@", gateway),
            lambda _: answers(f"http://127.0.0.1:{gateway}/ready"),
        ),
        "penstock-flower": (
            command("penstock-flower"),
            lambda _: answers(f"http://127.0.0.1:{flower}/flower/healthcheck"),
        ),
    }
    assert set(services) == {unit.stem for unit in SERVICES}
    ports = {
        "penstock-worker@": {"PENSTOCK_HTTP_PORT": str(free_port())},
        "penstock-dispatcher": {"PENSTOCK_HTTP_PORT": str(free_port())},
    }
    with ExitStack() as stack:
        for name, (words, ready) in services.items():
            own = environment | ports.get(name, {})
            within = seconds(unit_setting(INFRA / f"systemd/{name}.service", "TimeoutStopSec"))
            stack.enter_context(
                running(words, tmp_path / f"{name}.log", environment=own, ready=ready, stops_within=within)
            )
    database.close()
