"""The objects of `infra/kubernetes`, as kubectl and helm render them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[4]
KUBERNETES = ROOT / "infra/kubernetes"
CHART = KUBERNETES / "chart"
RENDERINGS = ("base", "small", "production")
OWN_WAYS = ("helm.sh/hook", "argocd.argoproj.io/hook", "checksum/config")
"""Starts of annotations that only one of Kustomize and Helm needs."""

Object = dict[str, Any]


def program(name: str) -> str:
    """Path of helm or kubectl, of `infra/kubernetes/tools.py` or on the PATH; skips the test where there is none."""
    of_ours = Path(sys.executable).parent / name
    path = str(of_ours) if of_ours.is_file() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; run: python infra/kubernetes/tools.py .venv/bin")
    return path


def run(*command: str | Path) -> str:
    """The standard output of a program that must succeed. It finds neither a cluster nor a user's own settings."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def kustomized(rendering: str) -> list[Object]:
    folder = KUBERNETES / "base" if rendering == "base" else KUBERNETES / "overlays" / rendering
    return _loaded(_kustomize(folder))


def charted(rendering: str, *options: str) -> list[Object]:
    """The chart with the values that are the same as a base or overlay."""
    values = () if rendering == "base" else ("--values", str(CHART / f"values-{rendering}.yaml"))
    return _loaded(_helm(*values, *options))


@cache
def _kustomize(folder: Path) -> str:
    return run(program("kubectl"), "kustomize", folder)


@cache
def _helm(*options: str) -> str:
    return run(program("helm"), "template", "penstock", CHART, "--namespace", "penstock", *options)


def _loaded(text: str) -> list[Object]:
    return [loaded for loaded in yaml.safe_load_all(text) if loaded]


def name_of(rendered: Object) -> str:
    return f"{rendered['kind']} {rendered['metadata']['name']}"


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [rendered for rendered in objects if rendered["kind"] in kinds]


def workloads(objects: list[Object]) -> list[Object]:
    return of_kind(objects, "Deployment", "Job")


def pod_of(workload: Object) -> Object:
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Object) -> Object:
    (container,) = pod_of(workload)["containers"]
    return dict(container)


def component(rendered: Object) -> str:
    return str(rendered["metadata"]["labels"]["app.kubernetes.io/component"])


def normalised(objects: list[Object]) -> dict[str, Object]:
    """Objects by kind and name, without what Kustomize and Helm do differently: the namespace, hooks of the
    migration, and how a change of the ConfigMap replaces pods. Lists whose order has no meaning are sorted."""
    by_name = {}
    for rendered in deepcopy(objects):
        rendered["metadata"].pop("namespace", None)
        _drop_annotations(rendered["metadata"])
        if rendered["kind"] == "ConfigMap":
            rendered["metadata"] = {"name": "penstock"}
        if rendered["kind"] in ("Deployment", "Job"):
            _drop_annotations(rendered["spec"]["template"]["metadata"])
            _normalise_pod(pod_of(rendered))
        by_name[name_of(rendered)] = rendered
    return by_name


def _drop_annotations(metadata: Object) -> None:
    annotations = metadata.pop("annotations", {})
    kept = {name: value for name, value in annotations.items() if not name.startswith(OWN_WAYS)}
    if kept:
        metadata["annotations"] = kept


def _normalise_pod(pod: Object) -> None:
    pod["volumes"].sort(key=lambda volume: volume["name"])
    for volume in pod["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = "penstock"
    for container in pod["containers"]:
        for part in ("env", "volumeMounts"):
            container[part].sort(key=lambda item: item["name"])


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Where two values differ, as `path: left, right`."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            yield from differences(left.get(key), right.get(key), f"{path}/{key}")
    elif left != right:
        yield f"{path}: {left!r}, {right!r}"
