"""`python -m benchmarks`: measure Penstock and its peers, print the ratios, and write them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import entrants, venvs
from benchmarks.entrants import ROOT
from benchmarks.lines import (
    adopted,
    builtin,
    delays,
    drain,
    enqueue,
    footprint,
    gateway,
    growth,
    idle,
    latency,
    outbox,
    pages,
    pooler,
    processes,
    request,
    retention,
    schedules,
    scrape,
    steps,
    telemetry,
    workflows,
)
from benchmarks.plan import ROWS, Plan, say
from benchmarks.session import Servers
from benchmarks.tables import Table

LINES: dict[str, Callable[[Plan], Table | list[Table]]] = {
    "drain-redis": drain.redis,
    "drain-ordinary": drain.at_ordinary_settings,
    "drain-rabbitmq": drain.rabbitmq,
    "waiting": drain.waiting,
    "enqueue-redis": enqueue.redis,
    "enqueue-rabbitmq": enqueue.rabbitmq,
    "latency": latency.redis,
    "memory": footprint.memory,
    "idle": idle.postgres,
    "imports": footprint.imports,
    "scaling": footprint.scaling,
    "processes": processes.redis,
    "adopted": adopted.redis,
    "growth": growth.redis,
    "growth-ledger": growth.ledgers,
    "steps": steps.redis,
    "metrics": telemetry.metrics,
    "traces": telemetry.traces,
    "way": steps.way,
    "rates": telemetry.rates,
    "delays": delays.postgres,
    "schedules": schedules.postgres,
    "outbox": outbox.postgres,
    "scrape": scrape.postgres,
    "pages": pages.postgres,
    "pooler": pooler.postgres,
    "retention": retention.ledgers,
    "request": request.redis,
    "gateway": gateway.redis,
    "workers": builtin.workers,
    "workflows": workflows.postgres,
}
ALONE = {
    "delays",
    "gateway",
    "growth",
    "growth-ledger",
    "idle",
    "metrics",
    "outbox",
    "pages",
    "pooler",
    "rates",
    "request",
    "retention",
    "schedules",
    "scrape",
    "steps",
    "traces",
    "way",
    "workers",
    "workflows",
}
"""Lines without peers."""
ON_POSTGRES = {
    "adopted",
    "delays",
    "drain-ordinary",
    "drain-redis",
    "growth-ledger",
    "idle",
    "latency",
    "outbox",
    "pages",
    "pooler",
    "rates",
    "retention",
    "schedules",
    "scrape",
    "steps",
    "way",
    "workers",
    "workflows",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds of each line; the median counts (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round, a third of the jobs: to see that it works")
    parser.add_argument("--only", action="append", metavar="LINE", help=f"one of {', '.join(LINES)}; may be repeated")
    parser.add_argument(
        "--peer", default="", help="only peers whose name contains one of these words, separated by commas"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=ROWS,
        metavar="N",
        help=f"the most jobs in the ledger of the lines pages and growth-ledger (default {ROWS:,})",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results", help="folder for the JSON")
    options = parser.parse_args()
    chosen = options.only or list(LINES)
    if unknown := [name for name in chosen if name not in LINES]:
        parser.error(f"no line {', '.join(unknown)}; there are {', '.join(LINES)}")
    unavailable = venvs.prepare() if set(chosen) - ALONE else []
    for missing in unavailable:
        say(f"peers left out: {missing}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    tables = []
    began, load = datetime.now(UTC), os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        servers = Servers(Path(folder))
        try:
            servers.start(
                rabbitmq=any("rabbitmq" in name or name == "idle" for name in chosen),
                postgres=bool(ON_POSTGRES & set(chosen)),
            )
            for missing in servers.missing:
                say(f"not measured: {missing}")
            plan = Plan(
                servers,
                1 if options.quick else options.runs,
                1 / 3 if options.quick else 1.0,
                match=options.peer,
                rows=options.rows,
            )
            for name in chosen:
                result = LINES[name](plan)
                for table in result if isinstance(result, list) else [result]:
                    tables.append(table)
                    print("\n" + "\n".join(table.lines()) + "\n", flush=True)
        finally:
            servers.stop()
    record = {
        "began": began.isoformat(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "load_before": load,
        "load_after": os.getloadavg(),
        "errors": plan.errors,
        "left_out": [*unavailable, *servers.missing],
        "versions": {
            folder.parent.name: venvs.versions(folder / "python")
            for folder in (entrants.OURS, entrants.NEWEST, entrants.REDIS5, entrants.NEWEST_PYTHON)
            if (folder / "python").exists()
        },
        "tables": [table.as_json() for table in tables],
    }
    options.out.mkdir(exist_ok=True)
    path = options.out / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1, default=str))
    say(f"load {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after; written to {path}")
    return 1 if plan.errors else 0


if __name__ == "__main__":
    sys.exit(main())
