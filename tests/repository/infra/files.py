"""The files of `infra/`, read as the tools that they are for read them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
CONFIG = ROOT / "config/penstock.toml"
COMPOSE = INFRA / "compose.yaml"
DEFINITIONS = INFRA / "rabbitmq/definitions.json"
DOCKERFILE = INFRA / "docker/Dockerfile"
UNITS = sorted((INFRA / "systemd").glob("*.service"))
SERVICES = [unit for unit in UNITS if "Type=oneshot" not in unit.read_text()]
"""Units of processes that keep running."""
DEPLOYING = ROOT / "docs/deploying.md"
WORKER_VARIABLES = {"WORKER_ENGINE": "celery", "WORKER_QUEUES": "emails,syncs", "WORKER_CONCURRENCY": "200"}
SAMPLE = "x1" * 16
"""A value for each variable of Compose."""
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>(?:[^{}]|\{[^{}]*\})*))?\}")


def env_example() -> dict[str, str]:
    """The variables of `.env.example`."""
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
    loaded: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE.read_text(), dict.fromkeys(env_example(), SAMPLE)))
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


def unit_command(unit: Path, instance: str = "8480", variables: dict[str, str] | None = None) -> list[str]:
    """The arguments that a unit gives to `penstock`.

    Arguments:
        variables: of its environment files; None: sample values for a worker's.
    """
    line = unit_setting(unit, "ExecStart").replace("%i", instance)
    executable, *arguments = shlex.split(interpolated(line, variables or WORKER_VARIABLES))
    assert executable == "/opt/penstock/bin/penstock"
    return arguments
