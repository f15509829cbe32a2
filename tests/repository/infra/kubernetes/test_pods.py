"""Commands, settings, probes, time to stop and rights of the pods. The chart's are the same: test_chart.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from repository.infra.commands import parsed
from repository.infra.kubernetes.rendering import (
    KUBERNETES,
    ROOT,
    Object,
    component,
    container_of,
    kustomized,
    name_of,
    of_kind,
    pod_of,
    workloads,
)

from penstock.config.settings import Settings, load_settings

URLS = {
    "PENSTOCK_BROKER_URL": "amqps://penstock:secret@rabbitmq.example.com/penstock",
    "PENSTOCK_DATABASE_URL": "postgresql+psycopg://penstock:secret@db.example.com/penstock",
    "PENSTOCK_STORAGE_URL": "s3://penstock/objects?region=eu-central-1",
}
NOT_SETTINGS = {"PENSTOCK_CONFIG", "PENSTOCK_FLOWER_BASIC_AUTH", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
OPTIONAL_SECRETS = {"worker": "penstock-worker", "gateway": "penstock-gateway"}
PROCESSES = ("worker", "dispatcher", "gateway", "flower", "migrate")


@pytest.fixture(params=PROCESSES)
def processes(request: pytest.FixtureRequest) -> list[Object]:
    """The workloads of a component, of which only the worker has several."""
    selected = [workload for workload in workloads(kustomized("production")) if component(workload) == request.param]
    assert len(selected) == (2 if request.param == "worker" else 1)
    return selected


def config_file(tmp_path: Path) -> Path:
    (config,) = of_kind(kustomized("base"), "ConfigMap")
    path = tmp_path / "penstock.toml"
    path.write_text(config["data"]["penstock.toml"])
    return path


def plain_env(workload: Object) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container_of(workload)["env"] if "value" in item}


def secret_env(workload: Object) -> dict[str, dict[str, Any]]:
    """Variable → the reference to its secret."""
    env = container_of(workload)["env"]
    return {item["name"]: item["valueFrom"]["secretKeyRef"] for item in env if "valueFrom" in item}


def http_port(workload: Object) -> int:
    (port,) = container_of(workload)["ports"]
    assert port["name"] == "http"
    return int(port["containerPort"])


def test_the_commands_exist_with_these_options(processes: list[Object]) -> None:
    for workload in processes:
        assert "command" not in container_of(workload)  # the image's entry point is `penstock`
        parsed(container_of(workload)["args"])


def test_each_queue_is_consumed_by_one_group_of_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    consumed: dict[str, str] = {}
    for workload in workloads(kustomized("base")):
        if component(workload) == "worker":
            options = parsed(container_of(workload)["args"])
            for queue in options["queues"].split(","):
                assert queue not in consumed, f"{queue} has two groups"
                consumed[queue] = options["engine"]
    in_the_cluster = load_settings(config_file(tmp_path)).queues
    assert consumed == {name: queue.engine for name, queue in in_the_cluster.items()}
    repository = load_settings(ROOT / "config/penstock.toml").queues
    assert consumed == {name: queue.engine for name, queue in repository.items()}


def test_a_process_gets_settings_that_load(
    processes: list[Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(tmp_path)
    for workload in processes:
        for name, value in plain_env(workload).items():
            monkeypatch.setenv(name, value)
        for name in secret_env(workload):
            monkeypatch.setenv(name, URLS.get(name, "a secret of 16 characters" if "SECRET" in name else "redis://a/0"))
        settings = load_settings(path)
        for name in URLS.keys() & secret_env(workload).keys():
            assert getattr(settings, name.removeprefix("PENSTOCK_").lower()) == URLS[name]


def test_each_variable_is_a_setting(processes: list[Object]) -> None:
    for workload in processes:
        for name in {*plain_env(workload), *secret_env(workload)} - NOT_SETTINGS:
            assert name.removeprefix("PENSTOCK_").lower() in Settings.model_fields, name
        assert len(container_of(workload)["env"]) == len({*plain_env(workload), *secret_env(workload)})


def test_secrets_are_references_and_no_more_than_a_process_needs(processes: list[Object]) -> None:
    for workload in processes:
        kind = component(workload)
        for name in plain_env(workload):
            assert not re.search(r"URL|SECRET|KEY|AUTH|PASSWORD|DSN", name), f"{name} is a value in {name_of(workload)}"
        references = secret_env(workload)
        needed = {"PENSTOCK_DATABASE_URL"}
        if kind != "migrate":
            needed |= {"PENSTOCK_BROKER_URL"}
        if kind in ("worker", "dispatcher", "gateway"):
            needed |= {"PENSTOCK_STORAGE_URL"}
        if kind == "gateway":
            needed |= {"PENSTOCK_TOKEN_SECRET"}
        if kind == "flower":
            needed |= {"PENSTOCK_FLOWER_BASIC_AUTH"}
        assert {name for name, reference in references.items() if not reference.get("optional")} == needed
        assert ("PENSTOCK_SMTP_URL" in references) == (kind == "worker")
        for name, reference in references.items():
            secret = "penstock-flower" if name == "PENSTOCK_FLOWER_BASIC_AUTH" else "penstock"
            assert (reference["name"], reference["key"]) == (secret, name)
        more = [item["secretRef"] for item in container_of(workload).get("envFrom", [])]
        expected = [{"name": OPTIONAL_SECRETS[kind], "optional": True}] if kind in OPTIONAL_SECRETS else []
        assert more == expected


def test_no_object_holds_a_secret() -> None:
    texts = [path.read_text() for path in KUBERNETES.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert not [text for text in texts if re.search(r"kind: Secret\b|stringData|://[^/\s]*:[^/\s]*@", text)]


def test_the_configuration_names_only_variables_that_are_there() -> None:
    """`${NAME}` in penstock.toml would need a key in an optional Secret."""
    assert "${" not in (KUBERNETES / "base/penstock.toml").read_text()


def test_the_documented_secrets_are_those_that_the_pods_read() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text().partition("### Secrets")[2].partition("\n## ")[0]
    read = {name for workload in workloads(kustomized("production")) for name in secret_env(workload)}
    documented = set(re.findall(r"^\| `\S+` \| `(\w+)` \|", page, re.MULTILINE))
    assert documented == read


def test_a_process_has_time_to_finish_before_it_is_killed(processes: list[Object], tmp_path: Path) -> None:
    grace = load_settings(config_file(tmp_path)).grace_seconds
    for workload in processes:
        pause = container_of(workload).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod_of(workload)["terminationGracePeriodSeconds"] == 45 > grace + pause


def test_probes_ask_for_paths_that_the_process_serves() -> None:
    from flower.urls import handlers

    from penstock.producers.gateway.auth.verbs import ROUTES

    health = (ROOT / "docs/monitoring.md").read_text().partition("## Health")[2]
    own = set(re.findall(r"^\| `(/\w+)` \|", health, re.MULTILINE))
    assert own == {"/live", "/ready", "/startup"}
    served = {
        "worker": own,
        "dispatcher": own,
        "gateway": {path for method, path in ROUTES if method == "GET"},
        "flower": {handler[0] if isinstance(handler, tuple) else handler.regex.pattern for handler in handlers},
    }
    for workload in of_kind(kustomized("production"), "Deployment"):
        kind, container = component(workload), container_of(workload)
        expected = {"startup": "/startup", "liveness": "/live", "readiness": "/ready"}
        if kind == "gateway":
            expected["startup"] = "/live"
        if kind == "flower":
            expected = dict.fromkeys(expected, "/healthcheck")
        for probe, path in expected.items():
            assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http"}
            assert path in served[kind]


def test_probes_reach_the_port_that_the_process_listens_on() -> None:
    for workload in of_kind(kustomized("production"), "Deployment"):
        if component(workload) in ("worker", "dispatcher"):
            env = plain_env(workload)
            listening = (env["PENSTOCK_HTTP_HOST"], int(env["PENSTOCK_HTTP_PORT"]))
        else:
            options = parsed(container_of(workload)["args"])
            listening = (options["address"], options["port"])
        assert listening == ("0.0.0.0", http_port(workload))
        annotations = workload["spec"]["template"]["metadata"].get("annotations", {})
        scraped = annotations.get("prometheus.io/port")
        assert scraped == (None if component(workload) == "flower" else str(http_port(workload)))


def test_services_and_the_ingress_reach_the_pods() -> None:
    objects = kustomized("production")
    services = {service["metadata"]["name"]: service for service in of_kind(objects, "Service")}
    for service in services.values():
        selected = [
            workload
            for workload in of_kind(objects, "Deployment")
            if service["spec"]["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert [component(workload) for workload in selected] == [component(service)]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] == "http"
    (ingress,) = of_kind(objects, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["path"] == "/v1"
    backend = path["backend"]["service"]
    assert backend == {
        "name": "penstock-gateway",
        "port": {"name": services["penstock-gateway"]["spec"]["ports"][0]["name"]},
    }
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


def test_a_process_has_no_rights_that_it_does_not_need(processes: list[Object]) -> None:
    """Kubernetes' Pod Security level `restricted`, and a file system that cannot be written."""
    user, group = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "infra/docker/Dockerfile").read_text(), re.MULTILINE)[0]
    for workload in processes:
        pod, container = pod_of(workload), container_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user)
        assert pod["securityContext"]["runAsGroup"] == int(group)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod["volumes"]:
            assert "configMap" in volume or volume["emptyDir"]["sizeLimit"], volume


def test_a_process_can_write_where_it_has_to(processes: list[Object]) -> None:
    home = "/var/lib/penstock"
    assert f"WORKDIR {home}" in (ROOT / "infra/docker/Dockerfile").read_text()
    for workload in processes:
        volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
        mounts = container_of(workload)["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if "emptyDir" in volumes[mount["name"]]}
        assert writable == {"/tmp"} | ({f"{home}/var"} if component(workload) == "flower" else set())
        config = plain_env(workload).get("PENSTOCK_CONFIG")
        mounted = {f"{mount['mountPath']}/penstock.toml" for mount in mounts if "configMap" in volumes[mount["name"]]}
        assert mounted == ({config} if component(workload) != "migrate" else set())


def test_services_of_the_cluster_set_no_variables(processes: list[Object]) -> None:
    """A Service named penstock-http would set PENSTOCK_HTTP_PORT to a URL."""
    assert all(pod_of(workload)["enableServiceLinks"] is False for workload in processes)


def test_memory_is_limited_and_processor_time_is_not(processes: list[Object]) -> None:
    for workload in processes:
        resources = container_of(workload)["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert resources["limits"].keys() == {"memory"}


def test_the_image_has_a_tag(processes: list[Object]) -> None:
    for workload in processes:
        repository, _, tag = container_of(workload)["image"].rpartition(":")
        assert repository
        assert tag not in ("", "latest")


def test_a_deploy_never_has_fewer_processes_than_before() -> None:
    for workload in of_kind(kustomized("production"), "Deployment"):
        assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_drained_node_takes_one_process_at_a_time() -> None:
    objects = kustomized("production")
    budgets = of_kind(objects, "PodDisruptionBudget")
    for workload in of_kind(objects, "Deployment"):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        fitting = [item for item in budgets if item["spec"]["selector"]["matchLabels"].items() <= labels.items()]
        assert len(fitting) == (0 if component(workload) == "flower" else 1)
    assert {budget["spec"]["maxUnavailable"] for budget in budgets} == {1}


def test_the_small_overlay_has_one_process_of_each_kind() -> None:
    assert {workload["spec"]["replicas"] for workload in of_kind(kustomized("small"), "Deployment")} == {1}
    replicas = {component(item): item["spec"]["replicas"] for item in of_kind(kustomized("base"), "Deployment")}
    assert replicas["dispatcher"] == replicas["gateway"] == 2


def test_the_migration_needs_nothing_that_is_made_after_it() -> None:
    (migrate,) = of_kind(kustomized("base"), "Job")
    assert container_of(migrate)["args"] == ["db", "upgrade"]
    assert "serviceAccountName" not in pod_of(migrate)
    assert all("emptyDir" in volume for volume in pod_of(migrate)["volumes"])
    assert set(secret_env(migrate)) == {"PENSTOCK_DATABASE_URL"}
    assert not plain_env(migrate)
