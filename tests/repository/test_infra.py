"""`config/penstock.toml` agrees with the code, and each dependency is explained."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from penstock.config.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config" / "penstock.toml"
SHOWN_DEFAULTS = (
    *("prefix", "stock_queues", "max_payload_bytes", "broker_timeout_seconds", "lease_seconds", "grace_seconds"),
    *("max_crashes", "rabbitmq_consumer_timeout_seconds", "uploads", "tenant_storage_prefix"),
)


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)


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
