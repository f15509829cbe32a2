"""Queries by which KEDA scales workers: their metrics exist, and Prometheus evaluates them as meant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository.infra.commands import parsed
from repository.infra.kubernetes.rendering import ROOT, Object, component, container_of, kustomized, of_kind, workloads


@pytest.fixture(params=["default", "reports"])
def scaled(request: pytest.FixtureRequest) -> Object:
    """The ScaledObject of a group of queues."""
    (rendered,) = [
        item
        for item in of_kind(kustomized("production"), "ScaledObject")
        if item["metadata"]["labels"]["queue-group"] == request.param
    ]
    return rendered


def worker_of(scaled: Object) -> Object:
    target = scaled["spec"]["scaleTargetRef"]
    assert target.keys() == {"name"}  # a Deployment, by default
    (worker,) = [item for item in workloads(kustomized("production")) if item["metadata"]["name"] == target["name"]]
    return worker


def triggers(scaled: Object) -> dict[str, dict[str, str]]:
    return {trigger["name"]: trigger["metadata"] for trigger in scaled["spec"]["triggers"]}


def test_every_group_of_workers_is_scaled_on_age_and_depth() -> None:
    objects = kustomized("production")
    workers = {item["metadata"]["name"] for item in workloads(objects) if component(item) == "worker"}
    scaled = of_kind(objects, "ScaledObject")
    assert {item["spec"]["scaleTargetRef"]["name"] for item in scaled} == workers
    assert all(set(triggers(item)) == {"oldest", "depth"} for item in scaled)


def test_a_scaled_deployment_states_no_replicas(scaled: Object) -> None:
    assert "replicas" not in worker_of(scaled)["spec"]


def test_the_numbers_of_processes_are_in_order(scaled: Object) -> None:
    spec = scaled["spec"]
    assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    unscaled = {item["metadata"]["name"]: item["spec"].get("replicas") for item in workloads(kustomized("base"))}
    assert spec["minReplicaCount"] == unscaled[spec["scaleTargetRef"]["name"]]


def test_metrics_and_labels_of_the_queries_are_in_the_catalogue(scaled: Object) -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    for trigger in triggers(scaled).values():
        names = set(re.findall(r"penstock_\w+", trigger["query"]))
        assert names
        for name in names:
            (labels,) = re.findall(rf"^\| `{name}` \| (.*?) \|", page, re.MULTILINE)
            assert ("`queue`" in labels) == (name != "penstock_fleet_age_seconds")


def test_the_queries_are_about_the_queues_of_the_group(scaled: Object) -> None:
    queues = parsed(container_of(worker_of(scaled))["args"])["queues"].split(",")
    for trigger in triggers(scaled).values():
        (pattern,) = re.findall(r'queue=~"([^"]*)"', trigger["query"])
        assert pattern.split("|") == queues


def assert_results(
    scaled: Object, series: list[dict[str, str]], expected: dict[str, float | None], tmp_path: Path
) -> None:
    """Let Prometheus evaluate the queries after five minutes of the series. None expects an empty result."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    expressions = [
        {
            "expr": triggers(scaled)[name]["query"],
            "eval_time": "5m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for name, value in expected.items()
    ]
    path = tmp_path / "queries.json"  # JSON is YAML
    path.write_text(
        json.dumps({"tests": [{"interval": "15s", "input_series": series, "promql_expr_test": expressions}]})
    )
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def reported(instance: str, age: str, **queues: tuple[str, str]) -> list[dict[str, str]]:
    """Series of a dispatcher: the age of its numbers, and (depth, oldest) of each queue."""
    series = [{"series": f'penstock_fleet_age_seconds{{instance="{instance}"}}', "values": age}]
    for queue, (depth, oldest) in queues.items():
        labels = f'{{instance="{instance}", queue="{queue}"}}'
        series.append({"series": f"penstock_queue_depth{labels}", "values": depth})
        series.append({"series": f"penstock_queue_oldest_seconds{labels}", "values": oldest})
    return series


def sample_queues(scaled: Object) -> tuple[str, str]:
    first, second, *_ = parsed(container_of(worker_of(scaled))["args"])["queues"].split(",")
    return first, second


def test_two_dispatchers_count_a_job_once(scaled: Object, tmp_path: Path) -> None:
    first, second = sample_queues(scaled)
    queues = {first: ("30x20", "90x20"), second: ("12x20", "7x20"), "others": ("999x20", "999x20")}
    series = [*reported("10.0.0.1:9464", "2x20", **queues), *reported("10.0.0.2:9464", "3x20", **queues)]
    assert_results(scaled, series, {"depth": 42, "oldest": 90}, tmp_path)


def test_numbers_of_a_dispatcher_that_stood_still_do_not_count(scaled: Object, tmp_path: Path) -> None:
    first, second = sample_queues(scaled)
    series = [
        *reported("10.0.0.1:9464", "2x20", **{first: ("3x20", "1x20"), second: ("0x20", "0x20")}),
        *reported("10.0.0.2:9464", "0+15x20", **{first: ("500x20", "600x20"), second: ("0x20", "0x20")}),
    ]
    assert_results(scaled, series, {"depth": 3, "oldest": 1}, tmp_path)


def test_without_fresh_numbers_there_is_no_result_and_the_fallback_holds(scaled: Object, tmp_path: Path) -> None:
    first, second = sample_queues(scaled)
    series = reported("10.0.0.1:9464", "0+15x20", **{first: ("0x20", "0x20"), second: ("0x20", "0x20")})
    assert_results(scaled, series, {"depth": None, "oldest": None}, tmp_path)
    assert all(trigger["ignoreNullValues"] == "false" for trigger in triggers(scaled).values())
