"""`infra/compose.yaml` is valid, and agrees with the code and the other files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from repository.infra.files import (
    COMPOSE,
    CONFIG,
    DEFINITIONS,
    INFRA,
    ROOT,
    SAMPLE,
    VARIABLE,
    compose,
    env_example,
    interpolated,
    ours,
    seconds,
)

from penstock.config.settings import Settings, load_settings

PROFILES = ("redis", "rabbitmq")


def test_the_compose_file_is_valid(tmp_path: Path) -> None:
    """By the published schema, and by docker compose itself where that is installed."""
    schema = json.loads((ROOT / "tests/support/data/compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose())
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        return
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={SAMPLE}\n" for name in env_example()))
    command = [docker, "compose", "--file", str(COMPOSE), "--env-file", str(env_file), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("missing", env_example())
def test_compose_refuses_to_start_without(missing: str) -> None:
    variables = {name: SAMPLE for name in env_example() if name != missing}
    with pytest.raises(ValueError, match=missing):
        interpolated(COMPOSE.read_text(), variables)


def test_the_example_environment_holds_no_secret_and_every_variable() -> None:
    used = {match["name"] for match in VARIABLE.finditer(COMPOSE.read_text())}
    assert set(env_example()) == used
    assert not any(env_example().values())


def test_services_wait_only_for_what_exists_and_can_become_ready() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}, which has no health check"


def test_mounted_files_exist() -> None:
    loaded = compose()
    for name, service in loaded["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            exists = (INFRA / source).is_file() if source.startswith(".") else source in loaded["volumes"]
            assert exists, f"{name} mounts {source}"
        for config in service.get("configs", []):
            assert config["source"] in loaded["configs"]


def test_ports_are_bound_to_the_loopback_address() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def profile(name: str) -> dict[str, Any]:
    """The services that a profile starts."""
    return {key: service for key, service in compose()["services"].items() if name in service.get("profiles", [name])}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_a_whole(name: str) -> None:
    services = profile(name)
    started = sorted(" ".join(service["command"][:3]) for service in services.values() if "build" in service)
    assert [command.split(" --address")[0] for command in started] == [
        "db upgrade",
        "dispatcher",
        "flower",
        "gateway",
        "worker --engine celery",
        "worker --engine dramatiq",
    ]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
    servers = {key for key, service in services.items() if "build" not in service}
    assert servers == {"redis", "postgres", "storage", "mail"} | ({"rabbitmq"} if name == "rabbitmq" else set())


def test_both_profiles_run_the_same_processes() -> None:
    """Apart from the broker: what one profile changes, the other does."""

    def comparable(service: dict[str, Any]) -> dict[str, Any]:
        environment = {key: value for key, value in service["environment"].items() if key != "PENSTOCK_BROKER_URL"}
        waits = set(service["depends_on"]) - {"rabbitmq"}
        return {**service, "profiles": None, "environment": environment, "depends_on": waits}

    redis, rabbitmq = (
        {key: comparable(service) for key, service in ours().items() if name in service.get("profiles", [])}
        for name in PROFILES
    )
    assert {f"rabbitmq-{key}": service for key, service in redis.items()} == rabbitmq


@pytest.mark.parametrize("name", PROFILES)
def test_the_processes_get_settings_that_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = {
        "redis": f"redis://:{SAMPLE}@redis:6379/0",
        "rabbitmq": f"amqp://penstock:{SAMPLE}@rabbitmq:5672/penstock",
    }
    for key, service in profile(name).items():
        if "build" not in service:
            continue
        with monkeypatch.context() as patched:
            for variable, value in service["environment"].items():
                patched.setenv(variable, value)
            settings = load_settings(CONFIG)
        assert settings.limits_url == brokers["redis"]
        if key != "migrate":
            assert settings.broker_url == brokers[name]
        for setting in ("database_url", "storage_url", "smtp_url"):
            assert getattr(settings, setting) == service["environment"][f"PENSTOCK_{setting.upper()}"]


def test_a_process_has_no_secret_that_it_does_not_need() -> None:
    for name, service in ours().items():
        environment = service["environment"]
        assert ("PENSTOCK_TOKEN_SECRET" in environment) == name.endswith("gateway")
        assert ("PENSTOCK_FLOWER_BASIC_AUTH" in environment) == name.endswith("flower")


def test_each_process_has_a_health_check_that_fits_what_it_serves() -> None:
    for name, service in ours().items():
        role, command = name.removeprefix("rabbitmq-").partition("-")[0], service["command"]
        if role == "migrate":
            continue
        test = service["healthcheck"]["test"]
        if role in ("worker", "dispatcher"):
            assert test == ["CMD", "penstock", "probe", "live"]
            assert service["environment"]["PENSTOCK_HTTP_HOST"] == "0.0.0.0"
            assert [service["environment"]["PENSTOCK_HTTP_PORT"]] == service["expose"]
            assert "ports" not in service, "its metrics are for the network inside"
        else:
            [url] = re.findall(r'"http://127.0.0.1:(\d+)(/[^"]*)"', test[-1])
            assert url[0] == command[command.index("--port") + 1]
            assert url[1] == ("/live" if role == "gateway" else f"/{command[-1]}/healthcheck")


def test_the_proxy_finds_the_ports_that_are_published() -> None:
    upstreams = set(
        re.findall(r"^    server (127\.0\.0\.1:\d+);", (INFRA / "nginx/penstock.conf").read_text(), re.MULTILINE)
    )
    for name in PROFILES:
        published = {port.rpartition(":")[0] for service in profile(name).values() for port in service.get("ports", [])}
        assert upstreams <= published


def test_the_broker_s_user_is_valid_json_that_fits_the_url_and_the_topology() -> None:
    user = json.loads(compose()["configs"]["rabbitmq-user"]["content"])
    assert (user["users"][0]["name"], user["users"][0]["password"]) == ("penstock", SAMPLE)
    assert {"name": user["permissions"][0]["vhost"]} in json.loads(DEFINITIONS.read_text())["vhosts"]


def test_no_command_of_compose_has_a_secret() -> None:
    secrets = {name for name in env_example() if name.endswith(("PASSWORD", "KEY", "AUTH", "SECRET"))}
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
        for part in ("command", "healthcheck"):
            used = {match["name"] for match in VARIABLE.finditer(json.dumps(service.get(part, "")))}
            assert not used & secrets, f"{part} of {name}"


def test_workers_consume_the_queues_that_the_configuration_gives_to_their_engine() -> None:
    consumed: dict[str, set[str]] = {}
    for service in ours().values():
        command = service["command"]
        if command[0] == "worker":
            options = dict(zip(command[1::2], command[2::2], strict=True))
            consumed.setdefault(options["--engine"], set()).add(options["--queues"])
    queues = load_settings(CONFIG).queues
    engines = {queue.engine for queue in queues.values()}
    assert {engine: [set(names.split(",")) for names in lists] for engine, lists in consumed.items()} == {
        engine: [{name for name, queue in queues.items() if queue.engine == engine}] for engine in engines
    }


@pytest.mark.parametrize("name", ours())
def test_a_container_has_time_to_finish_before_it_is_killed(name: str) -> None:
    grace = Settings.model_fields["grace_seconds"].default
    assert seconds(ours()[name]["stop_grace_period"]) > grace


def test_the_broker_s_settings_are_lines_of_name_and_value() -> None:
    lines = (INFRA / "rabbitmq" / "rabbitmq.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if line and not line.startswith("#"))
    folder = settings["load_definitions"]
    rabbitmq = compose()["services"]["rabbitmq"]
    targets = [mount.split(":")[1] for mount in rabbitmq["volumes"]] + [c["target"] for c in rabbitmq["configs"]]
    assert len([target for target in targets if Path(target).parent == Path(folder)]) == 2


def test_containers_of_the_image_can_write_nowhere_and_gain_no_rights() -> None:
    for name, service in ours().items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
        assert not {"privileged", "cap_add", "user", "pid", "network_mode", "devices"} & set(service), name
        writable = [mount for mount in service["volumes"] if not mount.endswith(":ro")]
        assert writable == (["flower:/var/lib/penstock/var"] if name.endswith("flower") else [])
