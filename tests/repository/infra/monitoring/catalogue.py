"""The metrics that docs/monitoring.md promises, and the labels that a PromQL expression has by them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs/monitoring.md"
PROMETHEUS = ROOT / "infra/prometheus"
RULES = PROMETHEUS / "rules/penstock.yml"

SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds to what it scrapes."""
OWN = {"penstock:objective:own": {"kind"}, "penstock:queue_age_limit:own": {"queue"}}
"""Series that people record in objectives.yml → labels."""


@dataclass(frozen=True)
class Metric:
    labels: frozenset[str]
    words: frozenset[str]
    """Values of labels that its description names."""


@cache
def catalogue() -> dict[str, Metric]:
    """Name in PromQL → metric, from the tables of the page. A histogram has three names."""
    section = PAGE.read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    metrics = {"up": Metric(frozenset(SCRAPED), frozenset())}
    for names, labels, text in re.findall(r"^\| (`penstock_[^|]+)\|([^|]*)\|([^|]*)\|$", section, re.MULTILINE):
        metric = Metric(frozenset(re.findall(r"`(\w+)`", labels)) | SCRAPED, frozenset(re.findall(r"`(\w+)`", text)))
        for name in re.findall(r"`(\w+)`", names):
            if text.startswith(" histogram"):
                metrics |= {f"{name}_sum": metric, f"{name}_count": metric}
                metrics[f"{name}_bucket"] = Metric(metric.labels | {"le"}, metric.words)
            else:
                metrics[name] = metric
    return metrics


def groups() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return loaded


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Name → rule; kind is `alert` or `record`."""
    return {rule[kind]: rule for group in groups() for rule in group["rules"] if kind in rule}


def labels_of(query: str) -> frozenset[str]:
    """The labels of a query's result. Fails where a metric, a label or a label's value is not in the catalogue."""
    labels = _labels(promql.parse(query))
    assert labels is not None, f"{query} is a number"
    return labels


@cache
def _recorded(name: str) -> frozenset[str]:
    return frozenset(OWN[name]) if name in OWN else labels_of(rules("record")[name]["expr"])


def _labels(node: Any) -> frozenset[str] | None:
    """Labels of an expression; None for a number."""
    match node:
        case promql.NumberLiteral():
            return None
        case promql.ParenExpr() | promql.UnaryExpr():
            return _labels(node.expr)
        case promql.MatrixSelector():
            return _labels(node.vector_selector)
        case promql.VectorSelector():
            return _selected(node)
        case promql.AggregateExpr():
            kept = frozenset(node.modifier.labels if node.modifier else ())
            inner = _labels(node.expr) or frozenset()
            assert kept <= inner, f"{node.prettify()}: no label {sorted(kept - inner)}"
            return kept
        case promql.Call():
            vectors = [labels for argument in node.args if (labels := _labels(argument)) is not None]
            if node.func.name == "absent":
                return frozenset()
            gone = {"le"} if node.func.name == "histogram_quantile" else set()
            return vectors[0] - gone if vectors else None
        case promql.BinaryExpr():
            return _combined(node)
    raise AssertionError(f"not expected here: {node}")


def _selected(node: promql.VectorSelector) -> frozenset[str]:
    name = node.name or ""
    if ":" in name:
        return _recorded(name)
    assert name in catalogue(), f"{name} is not in {PAGE.name}"
    metric = catalogue()[name]
    for matcher in node.matchers.matchers:
        assert matcher.name in metric.labels, f"{name} has no label {matcher.name}"
        if matcher.name not in SCRAPED and matcher.value != ".*":
            unknown = set(matcher.value.split("|")) - metric.words
            assert not unknown, f"{name}: {matcher.name} is never {sorted(unknown)}"
    return metric.labels


def _combined(node: promql.BinaryExpr) -> frozenset[str] | None:
    sides = [labels for side in (node.lhs, node.rhs) if (labels := _labels(side)) is not None]
    if len(sides) < 2:
        return sides[0] if sides else None
    left, right = sides
    operator = str(node).removeprefix(str(node.lhs)).split()[0]  # the node's own `op` is opaque
    matching = node.modifier.matching if node.modifier else None
    if matching:
        on = frozenset(matching.labels)
        assert on <= left & right, f"{node.prettify()}: no label {sorted(on - (left & right))} on both sides"
    else:
        assert operator == "or" or left == right, f"{node.prettify()}: {sorted(left)} never match {sorted(right)}"
    if operator == "or":
        return left & right
    return left if operator in ("and", "unless") or not matching else frozenset(matching.labels)
