"""Draw the board without Grafana: its queries, answered by a Prometheus and drawn by Prometheus' own console graphs.

.venv/bin/python infra/pictures/board.py http://127.0.0.1:9090 board.png --minutes 15

It needs a Prometheus 2 with the classic UI, as Debian's package is, and Chromium. Panels without data are printed.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image

BOARD = Path(__file__).parents[1] / "grafana" / "penstock.json"
WIDTH, CELL, GAP = 1480, 22, 6
"""Pixels: of the picture, of a unit of the grid in height, and between panels."""
SCRIPTS = ("d3/d3.min.js", "rickshaw/rickshaw.min.js", "jquery/jquery.min.js", "js/prom_console.js")
STYLES = ("rickshaw/rickshaw.min.css", "css/prom_console.css")
COLOURS = 128
"""Colours of the picture's palette, which makes it small."""

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>Penstock</title>
<script>var PATH_PREFIX = "{url}";</script>{head}
<style>
body {{ font: 12px sans-serif; margin: 8px; width: {width}px; background: #f4f5f7; }}
.board {{ display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: {cell}px; gap: {gap}px; }}
.panel {{ position: relative; background: white; border: 1px solid #d8dadd; border-radius: 3px;
  padding: 4px 8px; overflow: hidden; }}
.panel h3 {{ font-size: 13px; margin: 0 0 4px; }}
.row {{ font-size: 15px; font-weight: bold; align-self: end; }}
.number {{ font-size: 22px; color: #1f6f3f; }}
.number small {{ font-size: 12px; color: #555; }}
.rickshaw_legend {{ background: none; color: #333; padding: 0; font-size: 11px; }}
.rickshaw_legend ul {{ display: flex; flex-wrap: wrap; }}
.rickshaw_legend .line {{ padding: 0 8px 0 0; }}
.panel td a {{ display: none; }}
</style></head><body><h2>Penstock, {minutes} minutes</h2><div class="board">{panels}</div>
<script>{graphs}</script></body></html>
"""

GRAPH = """new PromConsole.Graph({{node: document.getElementById("{id}"), expr: {exprs}, name: {names},
duration: {seconds}, endTime: {end}, width: {width}, height: {height}, min: 0, xTitle: "", renderer: "{renderer}",
yAxisFormatter: PromConsole.NumberFormatter.humanizeNoSmallPrefix,
yHoverFormatter: PromConsole.NumberFormatter.humanizeNoSmallPrefix}});
"""


def resolved(query: str) -> str:
    """A query of the board with every queue and kind."""
    return re.sub(r"\$(queue|kind)\b", ".*", query.replace("$__rate_interval", "1m"))


def ask(url: str, path: str, **parameters: str | float) -> list[dict[str, Any]]:
    with urlopen(f"{url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def shown(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.1%}"
    return f"{value:,.3g} s" if unit == "s" else f"{value:,.4g}"


def numbers(url: str, panel: dict[str, Any], end: float) -> str:
    """The current values of a panel that is a number."""
    unit, parts = panel["fieldConfig"]["defaults"]["unit"], []
    for target in panel["targets"]:
        for series in ask(url, "query", query=resolved(target["expr"]), time=end):
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            small = "" if name == panel["title"] else f" <small>{html.escape(name)}</small>"
            parts.append(f"<span class=number>{shown(float(series['value'][1]), unit)}{small}</span>")
    return " &nbsp; ".join(parts) or "<span class=number>-</span>"


def without_data(url: str, minutes: float) -> list[str]:
    """Queries of the board for which there was no data in so many minutes until now."""
    end, missing = time.time(), []
    for panel in json.loads(BOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            span = {"start": end - minutes * 60, "end": end, "step": 15}
            if not ask(url, "query_range", query=resolved(target["expr"]), **span):
                missing.append(f"{panel['title']}: {target['legendFormat']}")
    return missing


def page(url: str, board: dict[str, Any], minutes: float, end: float) -> tuple[str, int]:
    """The HTML, and its height in pixels."""
    head = "".join(f'<link rel="stylesheet" href="{url}/classic/static/{path}">' for path in STYLES)
    head += "".join(f'<script src="{url}/classic/static/{path}"></script>' for path in SCRIPTS)
    panels, graphs, bottom = [], [], 0
    for panel in board["panels"]:
        place = panel["gridPos"]
        bottom = max(bottom, place["y"] + place["h"])
        style = f"grid-column: {place['x'] + 1} / span {place['w']}; grid-row: {place['y'] + 1} / span {place['h']}"
        title = html.escape(panel["title"])
        if panel["type"] == "row":
            panels.append(f'<div class="row" style="{style}">{title}</div>')
            continue
        body = numbers(url, panel, end) if panel["type"] == "stat" else f'<div id="graph{panel["id"]}"></div>'
        panels.append(f'<div class="panel" style="{style}"><h3>{title}</h3>{body}</div>')
        if panel["type"] == "timeseries":
            stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
            graphs.append(
                GRAPH.format(
                    id=f"graph{panel['id']}",
                    exprs=json.dumps([resolved(target["expr"]) for target in panel["targets"]]),
                    names=json.dumps(
                        [re.sub(r"\{\{(\w+)\}\}", r"[[\1]]", t["legendFormat"]) for t in panel["targets"]]
                    ),
                    seconds=int(minutes * 60),
                    end=end,
                    width=int(place["w"] * WIDTH / 24 - 90),
                    height=place["h"] * (CELL + GAP) - 82,
                    renderer="area" if stacked else "line",
                )
            )
    text = PAGE.format(
        url=url, head=head, width=WIDTH, cell=CELL, gap=GAP, minutes=f"{minutes:g}",
        panels="".join(panels), graphs="".join(graphs),
    )  # fmt: skip
    return text, bottom * (CELL + GAP) + 80


def draw(url: str, picture: Path, minutes: float) -> None:
    """Write the picture."""
    board, end = json.loads(BOARD.read_text()), time.time()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    text, height = page(url, board, minutes, end)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "board.html"
        file.write_text(text)
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--timeout=60000"]
        command += [f"--window-size={WIDTH + 16},{height}", f"--screenshot={picture.resolve()}", file.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--minutes", type=float, default=15, help="how far back")
    arguments = parser.parse_args()
    url = arguments.url.rstrip("/")
    draw(url, arguments.picture, arguments.minutes)
    for missing in without_data(url, arguments.minutes):
        print(f"no data: {missing}", file=sys.stderr)


if __name__ == "__main__":
    main()
