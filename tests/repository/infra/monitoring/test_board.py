"""The Grafana board: what board.py writes, valid by Grafana's published types, readable, and true to the catalogue."""

from __future__ import annotations

import copy
import enum
import json
import re
import runpy
import typing
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from repository.infra.monitoring.catalogue import ROOT, labels_of

GRAFANA = ROOT / "infra/grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "penstock.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
UNITS = {"s", "ops", "short", "percentunit", "none"}

register_default_plugins()


def problems(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Places where a value that Grafana's SDK has read is not of the type that the SDK declares for it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        if all(any(problems(value, choice, where)) for choice in arguments):
            yield from problems(value, arguments[0], where)
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from problems(item, arguments[0], f"{where}[{index}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from problems(item, arguments[1], f"{where}[{key}]")
    elif origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        if value not in (arguments or list(hint)):
            yield f"{where}: {value!r} is not a {hint}"
    elif hasattr(value, "to_json"):  # a part of a board; options of panels are declared as `object`
        for name, declared in typing.get_type_hints(type(value)).items():
            yield from problems(getattr(value, name), declared, f"{where}.{name}")
    elif hint not in (object, Any) and type(value) not in ((int, float) if hint is float else (hint,)):
        yield f"{where}: {value!r} is not a {hint}"


def faults(board: dict[str, Any]) -> list[str]:
    read = Dashboard.from_json(copy.deepcopy(board))
    written = json.loads(json.dumps(read, cls=JSONEncoder))
    unknown = [] if written == board else ["members that Grafana does not have"]
    return [*problems(read, Dashboard, "board"), *unknown]


def test_the_board_is_what_board_py_writes() -> None:
    written = runpy.run_path(str(GRAFANA / "board.py"))["board"]()
    assert (GRAFANA / "penstock.json").read_text() == written, "run .venv/bin/python infra/grafana/board.py"


def test_the_board_is_valid() -> None:
    assert faults(BOARD) == []


def panel(board: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(panel for panel in board["panels"] if panel["type"] == kind)


@pytest.mark.parametrize(
    "change",
    [
        lambda board: board.update(refreshed="30s"),
        lambda board: board.update(schemaVersion="41"),
        lambda board: board.update(tags="penstock"),
        lambda board: panel(board, "stat").update(heading="Jobs"),
        lambda board: panel(board, "stat")["gridPos"].update(w="4"),
        lambda board: panel(board, "stat")["targets"][0].update(query="up"),
        lambda board: panel(board, "stat")["targets"][0].update(expr=7),
        lambda board: panel(board, "stat")["options"].update(graphMode="bars"),
        lambda board: panel(board, "stat")["fieldConfig"]["defaults"].update(units="s"),
        lambda board: panel(board, "timeseries")["fieldConfig"]["defaults"]["custom"].update(lineWidth="1"),
        lambda board: panel(board, "timeseries")["options"]["legend"].update(displayMode="lists"),
        lambda board: board["templating"]["list"][0].update(type="data source"),
    ],
)
def test_a_board_that_grafana_does_not_know_is_noticed(change: Callable[[dict[str, Any]], None]) -> None:
    board = copy.deepcopy(BOARD)
    change(board)
    assert faults(board)


def test_panels_lie_in_the_grid_and_do_not_overlap() -> None:
    places = {panel["id"]: panel["gridPos"] for panel in BOARD["panels"]}
    assert len(places) == len(BOARD["panels"]), "ids are not unique"
    for place in places.values():
        assert place["x"] + place["w"] <= 24
    for (one_id, a), (other_id, b) in combinations(places.items(), 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart |= a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, f"panels {one_id} and {other_id} overlap"


def test_rows_of_panels_fill_the_width() -> None:
    widths: dict[int, int] = {}
    for panel in BOARD["panels"]:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_say_what_they_show(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_queries_and_legends_use_metrics_and_labels_of_the_catalogue(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        query = re.sub(r"\$(queue|kind)\b", ".*", target["expr"].replace("$__rate_interval", "5m"))
        labels = labels_of(query)
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert legend <= labels
        assert "instance" in labels or legend == labels, "series with the same name"


def test_variables_are_labels_of_the_catalogue() -> None:
    for variable in BOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label == variable["name"]
        assert label in labels_of(metric)


def test_provisioning_names_files_and_data_sources_that_exist() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == BOARD["templating"]["list"][0]["query"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/penstock.yml").read_text())["providers"]
    assert provider["type"] == "file"
