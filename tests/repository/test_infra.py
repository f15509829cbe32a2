"""`infra/` and `config/penstock.toml` agree with the code, and are valid for the tools that read them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from repository.infra.commands import parsed

from penstock.config.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
CONFIG = ROOT / "config" / "penstock.toml"
COMPOSE = INFRA / "compose.yaml"
DEFINITIONS = INFRA / "rabbitmq" / "definitions.json"
UNITS = sorted((INFRA / "systemd").glob("*.service"))
WORKER_VARIABLES = {"WORKER_ENGINE": "celery", "WORKER_QUEUES": "emails,syncs", "WORKER_CONCURRENCY": "200"}
SHOWN_DEFAULTS = (
    *("prefix", "stock_queues", "max_payload_bytes", "broker_timeout_seconds", "lease_seconds", "grace_seconds"),
    *("max_crashes", "rabbitmq_consumer_timeout_seconds", "uploads", "tenant_storage_prefix"),
)
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>(?:[^{}]|\{[^{}]*\})*))?\}")


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)


def env_example() -> dict[str, str]:
    """The variables of `.env.example`; the commented one is an alternative, not a default."""
    lines = (INFRA / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolated(text: str, variables: dict[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}` and `${NAME:?message}`, as Compose reads them."""

    def value(match: re.Match[str]) -> str:
        default = variables.get(match["name"], "")
        if not default and match["kind"] == "?":
            raise ValueError(f"{match['name']}: {match['rest']}")
        return default or (interpolated(match["rest"], variables) if match["kind"] == "-" else "")

    return VARIABLE.sub(value, text)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE.read_text(), dict.fromkeys(env_example(), "x1")))
    return loaded


def ours() -> dict[str, dict[str, Any]]:
    """The services that run Penstock's own image."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m|min)?", duration).groups()  # type: ignore[union-attr]
    return int(number) * (1 if unit in (None, "s") else 60)


def unit_setting(unit: Path, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)
    return str(value)


def unit_command(unit: Path) -> list[str]:
    """The arguments that a unit gives to `penstock`, with sample values for a worker's variables."""
    executable, *arguments = shlex.split(interpolated(unit_setting(unit, "ExecStart"), WORKER_VARIABLES))
    assert executable == "/opt/penstock/bin/penstock"
    return arguments


# ---- Compose


def test_the_compose_file_is_valid(tmp_path: Path) -> None:
    """By the published schema, and by docker compose itself where that is installed."""
    schema = json.loads((ROOT / "tests/support/data/compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose())
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        return
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}=x1\n" for name in env_example()))
    command = [docker, "compose", "--file", str(COMPOSE), "--env-file", str(env_file), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("missing", env_example())
def test_compose_refuses_to_start_without(missing: str) -> None:
    variables = {name: "x1" for name in env_example() if name != missing}
    with pytest.raises(ValueError, match=missing):
        interpolated(COMPOSE.read_text(), variables)


def test_the_example_environment_holds_no_secret_and_every_variable() -> None:
    used = {match["name"] for match in VARIABLE.finditer(COMPOSE.read_text())}
    assert set(env_example()) == used - {"PENSTOCK_BROKER_URL"}
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


def test_the_processes_get_settings_that_load(monkeypatch: pytest.MonkeyPatch, bare_environment: None) -> None:
    for service in ours().values():
        for name, value in service["environment"].items():
            monkeypatch.setenv(name, value)
        settings = load_settings(CONFIG)
        assert settings.broker_url == "amqp://penstock:x1@rabbitmq:5672/penstock"
        for name in ("database_url", "storage_url", "smtp_url"):
            assert getattr(settings, name) == service["environment"][f"PENSTOCK_{name.upper()}"]


def test_the_broker_s_user_is_valid_json_that_fits_the_url_and_the_topology() -> None:
    user = json.loads(compose()["configs"]["rabbitmq-user"]["content"])
    assert (user["users"][0]["name"], user["users"][0]["password"]) == ("penstock", "x1")
    assert {"name": user["permissions"][0]["vhost"]} in json.loads(DEFINITIONS.read_text())["vhosts"]


def test_no_command_of_compose_has_a_secret() -> None:
    secrets = {name for name in env_example() if name.endswith(("PASSWORD", "KEY", "AUTH"))}
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
        for part in ("command", "healthcheck"):
            used = {match["name"] for match in VARIABLE.finditer(json.dumps(service.get(part, "")))}
            assert not used & secrets, f"{part} of {name}"


def test_workers_consume_the_queues_that_the_configuration_gives_to_their_engine(bare_environment: None) -> None:
    consumed = {}
    for service in ours().values():
        command = service["command"]
        if command[0] == "worker":
            options = dict(zip(command[1::2], command[2::2], strict=True))
            consumed[options["--engine"]] = set(options["--queues"].split(","))
    queues = load_settings(CONFIG).queues
    engines = {queue.engine for queue in queues.values()}
    assert consumed == {
        engine: {name for name, queue in queues.items() if queue.engine == engine} for engine in engines
    }


@pytest.mark.parametrize("name", [*ours(), *(unit.name for unit in UNITS)])
def test_a_worker_has_time_to_finish_before_it_is_killed(name: str) -> None:
    grace = Settings.model_fields["grace_seconds"].default
    if name in ours():
        assert seconds(ours()[name]["stop_grace_period"]) > grace
    else:
        assert seconds(unit_setting(INFRA / "systemd" / name, "TimeoutStopSec")) > grace


def test_the_broker_s_settings_are_lines_of_name_and_value() -> None:
    lines = (INFRA / "rabbitmq" / "rabbitmq.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if line and not line.startswith("#"))
    folder = settings["load_definitions"]
    rabbitmq = compose()["services"]["rabbitmq"]
    targets = [mount.split(":")[1] for mount in rabbitmq["volumes"]] + [c["target"] for c in rabbitmq["configs"]]
    assert len([target for target in targets if Path(target).parent == Path(folder)]) == 2


# ---- The command line


COMMANDS = {
    **{f"compose {name}": service["command"] for name, service in ours().items()},
    **{unit.name: unit_command(unit) for unit in UNITS},
    **{
        f"README.md {command}": command.split()
        for command in re.findall(r"bin/penstock ([a-z].*)$", (INFRA / "README.md").read_text(), re.MULTILINE)
    },
}


@pytest.mark.parametrize("place", COMMANDS)
def test_the_command_exists_with_these_options(place: str) -> None:
    parsed(COMMANDS[place])


def test_flower_is_given_the_password_that_compose_asks_for() -> None:
    from penstock.workers.engines.celery.flower_server import BASIC_AUTH

    assert ours()["flower"]["environment"][BASIC_AUTH] == "x1"


# ---- The image


def test_the_image_is_built_in_stages_and_runs_as_a_fixed_user() -> None:
    text = (INFRA / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [name for name, _ in steps]
    stages = [number for number, name in enumerate(instructions) if name == "FROM"]
    final = dict(steps[stages[-1] :])
    assert len(stages) == 2
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final["USER"])
    assert final["USER"].split(":")[0] in final["RUN"]
    assert json.loads(final["ENTRYPOINT"]) == ["penstock"]
    assert "ADD" not in instructions
    assert "HEALTHCHECK" not in instructions


def test_the_image_is_built_by_hash_where_the_hashes_are() -> None:
    text = (INFRA / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^RUN --mount=\S+ +(.+)$", text, re.MULTILINE)
    by_hash, _, otherwise = command.partition("else")
    installs = [step for step in by_hash.split("&&") if re.search(r"pip (install|wheel)", step)]
    assert installs
    for step in installs:
        # The wheel of this repository has no hash, and brings nothing else.
        assert "--require-hashes" in step or "--no-deps" in step
    assert all("--no-build-isolation" in step for step in installs if "pip wheel" in step)
    assert "-c constraints.txt" in otherwise


def test_containers_of_the_image_can_write_nowhere_and_gain_no_rights() -> None:
    for name, service in ours().items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
        assert not {"privileged", "cap_add", "user", "pid", "network_mode", "devices"} & set(service), name
        writable = [mount for mount in service["volumes"] if not mount.endswith(":ro")]
        assert writable == (["flower:/var/lib/penstock/var"] if name == "flower" else [])


def test_flower_s_volume_belongs_to_the_user_of_the_image() -> None:
    from penstock.workers.engines.celery.flower_server import FOLDER

    text = (INFRA / "docker" / "Dockerfile").read_text()
    (workdir,) = re.findall(r"^WORKDIR (/var\S+)$", text, re.MULTILINE)
    assert f"install -d -o penstock -g penstock -m 0700 {workdir}/{FOLDER.parent}" in text


def test_files_that_the_image_copies_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()]
    assert {"pyproject.toml", "schemas", "producers", "workers", "config"} <= set(sources)
    for source in sources:
        assert "*" in source or (ROOT / source).exists()  # a pattern is for what a verb makes
        assert f"!{source}" in ignored


def test_the_image_s_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (chosen,) = re.findall(r"^ARG EXTRAS=(.+)$", (INFRA / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    everything = re.fullmatch(r"penstock\[(.+)\]", extras["all"][0])
    assert everything is not None
    assert set(chosen.split(",")) == set(everything[1].split(",")) - {"embedded"}


# ---- systemd


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_stops_by_sigterm_and_comes_back(unit: Path) -> None:
    assert unit_setting(unit, "KillSignal") == "SIGTERM"
    assert unit_setting(unit, "KillMode") == "mixed"
    assert unit_setting(unit, "Restart") == "always"
    assert unit_setting(unit, "User") not in ("", "root")
    assert not re.search(r"\$\{PENSTOCK_", unit_setting(unit, "ExecStart"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_a_unit_writes_is_for_its_user_alone(unit: Path) -> None:
    assert unit_setting(unit, "UMask") == "0077"
    assert unit_setting(unit, "StateDirectoryMode") == "0700"


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


# ---- config/penstock.toml


def test_the_configuration_in_the_repository_loads_and_needs_no_service(bare_environment: None) -> None:
    active, default = load_settings(CONFIG), Settings()
    assert active.model_copy(update={"queues": {}}).model_dump() == default.model_dump()


def test_examples_in_the_configuration_are_valid(tmp_path: Path, bare_environment: None) -> None:
    uncommented = re.sub(r"^#(?=\S)", "", CONFIG.read_text(), flags=re.MULTILINE)
    (tmp_path / "penstock.toml").write_text(uncommented)
    settings, default = load_settings(tmp_path / "penstock.toml"), Settings()
    assert (set(settings.schedules), set(settings.reports), set(settings.syncs)) == (
        {"nightly-sales", "hourly-orders", "month-end"},
        {"daily_sales", "own_sales"},
        {"orders", "customers"},
    )
    assert settings.schedules["nightly-sales"].payload["report"] in settings.reports
    for name in SHOWN_DEFAULTS:
        assert getattr(settings, name) == getattr(default, name), f"the file does not show the default of {name}"


def test_dependencies_are_all_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = [line for lines in (project["dependencies"], *extras) for line in lines]
    names = {re.split(r"[\[<>=;\s]", line)[0] for line in required} - {"penstock"}
    explained = re.findall(
        r"^\| (?:`\w+` \| )?([a-z0-9-]+) \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
    )
    assert sorted(set(explained) - {"package", "extra"} - {"---"}) == sorted(names)
