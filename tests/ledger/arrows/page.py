"""Writes the diagram of a job's states into `docs/architecture.md`: `make states`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from ledger.arrows.declared import declared  # noqa: E402

from penstock.schemas import State  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
BEGIN = "<!-- begin of states: written by `make states` -->\n"
END = "<!-- end of states -->\n"


def diagram() -> str:
    """The states in Mermaid, and a table of the arrows with their files."""
    files = declared()
    labels: dict[tuple[str, str], list[str]] = {}
    rows: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for file, arrows in files.items():
        for arrow in arrows:
            names = labels.setdefault((_node(arrow.source), _node(arrow.target)), [])
            if (name := file.split("/")[1].removesuffix(".py")) not in names:
                names.append(name)
            sources, targets = rows.setdefault((file, arrow.label), ([], []))
            for state, cell in ((arrow.source, sources), (arrow.target, targets)):
                if _cell(state) not in cell:
                    cell.append(_cell(state))
    lines = [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in sorted(labels.items())]
    table = [
        f"| {', '.join(sources)} | {', '.join(targets)} | {label} | `ledger/{file}` |"
        for (file, label), (sources, targets) in rows.items()
    ]
    head = ["| from | to | why | file |", "| --- | --- | --- | --- |"]
    return "\n".join(["", "```mermaid", "stateDiagram-v2", *lines, "```", "", *head, *table, "", ""])


def updated(text: str) -> str:
    """The page's text with the diagram of now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + diagram() + END + rest.partition(END)[2]


def _node(state: State | None) -> str:
    return "[*]" if state is None else str(state)


def _cell(state: State | None) -> str:
    return "not on record" if state is None else f"`{state}`"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
