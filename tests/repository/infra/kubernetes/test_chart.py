"""Kustomize and the Helm chart make the same objects, and both are valid."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from repository.infra.kubernetes.rendering import (
    CHART,
    KUBERNETES,
    RENDERINGS,
    ROOT,
    charted,
    component,
    container_of,
    differences,
    kustomized,
    name_of,
    normalised,
    of_kind,
    pod_of,
    program,
    run,
    workloads,
)

from penstock.schemas import __version__

KUBERNETES_VERSIONS = ("1.30", "1.34", "1.37")
"""The first that has all that is used here (`preStop.sleep`), one between, and the newest that the package knows."""
KEDA_SCHEMA = ROOT / "tests/support/data/keda-scaledobject.json"


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_chart_renders_the_same_objects_as_kustomize(rendering: str) -> None:
    left, right = normalised(kustomized(rendering)), normalised(charted(rendering))
    assert list(differences(left, right)) == []


def test_a_difference_between_chart_and_kustomize_is_seen() -> None:
    more = normalised(charted("base", "--set", "workers.default.replicas=7"))
    assert list(differences(normalised(kustomized("base")), more)) == [
        "/Deployment penstock-worker-default/spec/replicas: 2, 7"
    ]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_kubernetes_accepts_the_objects(rendering: str, version: str) -> None:
    """By the published schemas, in which a field that is unknown is a fault. The chart's objects are the same."""
    for rendered in kustomized(rendering):
        if rendered["kind"] != "ScaledObject":
            assert kubernetes_validate.validate(rendered, version, strict=True) == version


def test_kubernetes_refuses_an_unknown_field() -> None:
    deployment = of_kind(kustomized("base"), "Deployment")[0]
    pod_of(deployment)["gracePeriodSeconds"] = 45
    with pytest.raises(kubernetes_validate.ValidationError, match="gracePeriodSeconds"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[-1], strict=True)


def test_keda_accepts_the_scaled_objects() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(KEDA_SCHEMA.read_text()))
    scaled = of_kind(kustomized("production"), "ScaledObject")
    assert len(scaled) == 2
    for rendered in scaled:
        validator.validate(rendered)


def test_keda_s_schema_refuses_an_unknown_field() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(KEDA_SCHEMA.read_text()))
    scaled: dict[str, Any] = of_kind(kustomized("production"), "ScaledObject")[0]
    scaled["spec"]["maxReplicas"] = 3
    assert not validator.is_valid(scaled)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_helm_finds_no_fault_in_the_chart(rendering: str) -> None:
    values = [] if rendering == "base" else ["--values", str(CHART / f"values-{rendering}.yaml")]
    run(program("helm"), "lint", "--strict", CHART, *values)


@pytest.mark.parametrize(
    "wrong",
    [
        "worker.default.replicas=3",
        "workers.default.engine=rq",
        "workers.default.queue=emails",
        "keda.enable=true",
        "gateway.ingress.hosts=a",
    ],
)
def test_helm_refuses_values_that_the_chart_does_not_know(wrong: str) -> None:
    with pytest.raises(AssertionError, match="values don't meet the specifications of the schema"):
        charted("base", "--set", wrong)


def test_the_image_is_that_of_this_version_in_both() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (image,) = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["images"]
    assert chart["appVersion"] == image["newTag"] == __version__
    images = {container_of(workload)["image"] for workload in workloads(kustomized("production"))}
    assert images == {f"registry.example.com/penstock:{__version__}"}


def test_parts_of_the_chart_can_be_left_out() -> None:
    switches = ("flower.enabled", "migrate.enabled", "networkPolicy.enabled")
    objects = charted("base", *(option for switch in switches for option in ("--set", f"{switch}=false")))
    assert not of_kind(objects, "NetworkPolicy", "Job")
    assert {component(workload) for workload in workloads(objects)} == {"worker", "dispatcher", "gateway"}


def test_a_group_of_queues_is_added_by_values_alone() -> None:
    group = {
        "engine": "celery",
        "queues": ["payouts"],
        "concurrency": 4,
        "replicas": 1,
        "args": ["--import", "shop.jobs"],
        "resources": {},
        "scaling": {"min": 0, "max": 2, "fallback": 1, "oldestSeconds": 30, "depth": 10},
    }
    objects = charted("production", "--set-json", f"workers.payouts={json.dumps(group)}")
    (workload,) = [item for item in workloads(objects) if item["metadata"]["name"] == "penstock-worker-payouts"]
    assert container_of(workload)["args"] == (
        ["worker", "--engine", "celery", "--queues", "payouts", "--concurrency", "4", "--import", "shop.jobs"]
    )
    names = {name_of(rendered) for rendered in objects}
    assert {"PodDisruptionBudget penstock-worker-payouts", "ScaledObject penstock-worker-payouts"} <= names


def test_pods_go_where_values_say_and_get_more_variables() -> None:
    options: dict[str, Any] = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "jobs", "operator": "Exists"}],
        "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector.monitoring:4318"}],
        "image": {"repository": "registry.example.com/shop", "tag": "7", "pullSecrets": [{"name": "registry"}]},
    }
    set_json = [("--set-json", f"{name}={json.dumps(value)}") for name, value in options.items()]
    objects = charted("base", *(part for pair in set_json for part in pair))
    for workload in workloads(objects):
        pod = pod_of(workload)
        assert (pod["nodeSelector"], pod["tolerations"]) == (options["nodeSelector"], options["tolerations"])
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert container_of(workload)["image"] == "registry.example.com/shop:7"
        assert (options["env"][0] in container_of(workload)["env"]) == (component(workload) != "migrate")
        kubernetes_validate.validate(workload, KUBERNETES_VERSIONS[0], strict=True)


def test_a_change_of_the_configuration_replaces_the_pods() -> None:
    def pods(*options: str) -> list[Any]:
        deployments = of_kind(charted("base", *options), "Deployment")
        return [deployment["spec"]["template"]["metadata"]["annotations"] for deployment in deployments]

    assert all(old != new for old, new in zip(pods(), pods("--set", "config=prefix = 'shop'"), strict=True))
    (config,) = of_kind(kustomized("base"), "ConfigMap")
    volumes = [volume for item in of_kind(kustomized("base"), "Deployment") for volume in pod_of(item)["volumes"]]
    assert {volume["configMap"]["name"] for volume in volumes if "configMap" in volume} == {config["metadata"]["name"]}
    assert config["metadata"]["name"].startswith("penstock-")
