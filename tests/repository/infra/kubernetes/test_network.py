"""The network policies allow what the processes need, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from repository.infra.kubernetes.rendering import (
    Object,
    charted,
    component,
    container_of,
    kustomized,
    of_kind,
    workloads,
)

DNS, DATABASE, BROKER = {53}, {5432, 3306}, {6379, 5672, 5671, 15672, 15671}
STORAGE, MAIL, TRACES = {443}, {25, 465, 587}, {4317, 4318}
EGRESS = {
    "worker": DNS | DATABASE | BROKER | STORAGE | MAIL | TRACES,
    "dispatcher": DNS | DATABASE | BROKER | STORAGE | TRACES,
    "gateway": DNS | DATABASE | BROKER | STORAGE | TRACES,
    "flower": DNS | DATABASE | BROKER,
    "migrate": DNS | DATABASE,
}
INGRESS = {
    "worker": {("monitoring", 9464)},
    "dispatcher": {("monitoring", 9464)},
    "gateway": {("monitoring", 8480), ("ingress-nginx", 8480)},
    "flower": set(),
    "migrate": set(),
}
"""Component → namespaces and the ports that their pods reach."""


def selects(selector: Object, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def policies_of(workload: Object, objects: list[Object]) -> list[Object]:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    return [policy for policy in policies if selects(policy["podSelector"], labels)]


def namespace_of(peer: Object) -> str:
    return str(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"])


def port_number(port: Any, workload: Object) -> int:
    named = {item["name"]: item["containerPort"] for item in container_of(workload).get("ports", [])}
    return int(named.get(port, port))


@pytest.mark.parametrize("rendering", ["base", "production"])
def test_a_process_reaches_the_servers_that_it_needs_and_no_others(rendering: str) -> None:
    objects = kustomized(rendering)
    for workload in workloads(objects):
        policies = policies_of(workload, objects)
        assert any("Egress" in policy["policyTypes"] for policy in policies)
        rules = [rule for policy in policies for rule in policy.get("egress", [])]
        assert all(rule["ports"] for rule in rules)
        assert {port["port"] for rule in rules for port in rule["ports"]} == EGRESS[component(workload)]
        for rule in rules:
            if {port["port"] for port in rule["ports"]} in (DNS, TRACES):
                assert rule["to"]


@pytest.mark.parametrize("rendering", ["base", "production"])
def test_only_the_ingress_and_prometheus_reach_a_process(rendering: str) -> None:
    objects = kustomized(rendering)
    for workload in workloads(objects):
        policies = policies_of(workload, objects)
        assert any("Ingress" in policy["policyTypes"] for policy in policies)
        allowed = {
            (namespace_of(peer), port_number(port["port"], workload))
            for policy in policies
            for rule in policy.get("ingress", [])
            for peer in rule["from"]
            for port in rule["ports"]
        }
        assert allowed == INGRESS[component(workload)]


def test_the_chart_s_namespaces_and_ports_are_values() -> None:
    options = (
        *("--set", "networkPolicy.monitoringNamespace=observability"),
        *("--set", "networkPolicy.ingressNamespace=edge"),
        *("--set-json", "networkPolicy.ports.storage=[8333]"),
    )
    objects = charted("base", *options)
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    rules = [rule for policy in policies for rule in (*policy.get("ingress", []), *policy.get("egress", []))]
    peers = [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]
    assert {namespace_of(peer) for peer in peers} == {"kube-system", "observability", "edge"}
    assert {"protocol": "TCP", "port": 8333} in [port for rule in rules for port in rule["ports"]]
