"""Prometheus' rules and configuration: valid, true to the catalogue of metrics, with a runbook for each alert."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from repository.infra.monitoring.catalogue import OWN, PAGE, PROMETHEUS, RULES, labels_of, rules

OBJECTIVES = PROMETHEUS / "rules/objectives.yml"
ALERTS = rules("alert")
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package `prometheus` has it)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [RULES, OBJECTIVES], ids=lambda path: path.name)
def test_rules_are_valid(path: Path) -> None:
    promtool("check", "rules", path)


def test_the_examples_of_objectives_are_valid_rules(tmp_path: Path) -> None:
    """Comments, ready to be copied below `rules`."""
    lines = [line[2:] for line in OBJECTIVES.read_text().splitlines() if line.startswith("#   ")]
    examples = yaml.safe_load("\n".join(lines))
    assert {rule["record"]: set(rule["labels"]) for rule in examples} == OWN
    (tmp_path / "objectives.yml").write_text(yaml.safe_dump({"groups": [{"name": "own", "rules": examples}]}))
    promtool("check", "rules", tmp_path / "objectives.yml")


def test_the_configuration_is_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_the_configuration_for_kubernetes_is_valid(tmp_path: Path) -> None:
    """Debian's promtool is built without Kubernetes: the discovery itself is left out where it is."""
    config = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": ["127.0.0.1:9464"]} for _ in job.pop("kubernetes_sd_configs")]
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_otherwise(path: Path) -> None:
    promtool("test", "rules", path)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    checks = [
        (check["alertname"], bool(check["exp_alerts"]))
        for path in CASES
        for case in yaml.safe_load(path.read_text())["tests"]
        for check in case["alert_rule_test"]
    ]
    assert set(checks) == {(name, fires) for name in ALERTS for fires in (True, False)}


@pytest.mark.parametrize("name", rules("record"))
def test_recording_rules_use_metrics_and_labels_of_the_catalogue(name: str) -> None:
    labels_of(rules("record")[name]["expr"])


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_use_metrics_and_labels_of_the_catalogue(name: str) -> None:
    labels = labels_of(ALERTS[name]["expr"])
    texts = " ".join(ALERTS[name]["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= labels


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("penstock_job_total", "is not in"),
        ("sum by (tenant) (penstock_jobs_total)", "no label"),
        ('penstock_jobs_total{outcome="failed"}', "is never"),
        ("max by (queue) (penstock_queue_depth) > max(penstock_workers)", "never match"),
        ("max by (queue) (penstock_queue_depth) > on (kind) max(penstock_workers)", "on both sides"),
    ],
)
def test_a_query_that_can_match_nothing_is_noticed(query: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        labels_of(query)


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_have_a_severity_and_a_runbook(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description"} <= set(alert["annotations"])
    assert alert["annotations"]["runbook_url"] == f"docs/monitoring.md#{name.lower()}"


def test_the_page_has_a_row_and_a_runbook_for_each_alert() -> None:
    section = PAGE.read_text().partition("## Alerts of Prometheus\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", section, re.MULTILINE) == list(ALERTS)
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \| .+ \| (.+) \| .+ \|$", section, re.MULTILINE)
    for (name, anchor, severity, duration), (alert, rule) in zip(rows, ALERTS.items(), strict=True):
        assert (name, anchor, severity) == (alert, alert.lower(), rule["labels"]["severity"])
        assert duration == {"2m": "2 min", "5m": "5 min", "10m": "10 min", "15m": "15 min", "30m": "30 min"}.get(
            rule.get("for", ""), "a day" if "for" in rule else "at once"
        )
