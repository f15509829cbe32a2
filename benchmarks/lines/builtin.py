"""The built-in workers: rates, and the memory of a run, next to the limits that we set ourselves."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable

import sqlalchemy as sa

from benchmarks.entrants import ROOT
from benchmarks.plan import Plan, say
from benchmarks.session import BenchError
from benchmarks.tables import Requirement, Table

SIZES = {"12 MP": (4000, 3000), "48 MP": (8000, 6000), "108 MP": (12000, 9000)}
MOST_PHOTO_MIB = 2048.0
"""The default of `decoder_memory`."""
FORMS = {"CSV": ("csv", 80.0), "XLSX": ("xlsx", 90.0), "JSONL": ("jsonl", 80.0)}
"""Format → its name in a job, and the most memory of a run, in MiB."""
BARE = "a bare loop over a cursor"
MAILS, MAIL_MB, MOST_MAILS_MIB = 24, 19, 200.0
RECORDS = 100_000

_FILL = """
CREATE TABLE {table} AS SELECT id, 'customer ' || id AS name, (id / 100.0)::numeric(12, 2) AS price,
DATE '2026-01-01' + (id % 300) AS sold, repeat('x', 20) AS note FROM generate_series(1, {rows}) AS id
"""


def photos(plan: Plan) -> list[Table]:
    """Photos of a camera's size with the default settings: a clean copy and thumbnails of 256 and 1024 pixels."""
    rate = Table("Photos processed by a worker, one at a time", "photos/min")
    memory = Table("Peak memory of the decoder of a photo", "MiB", more_is_better=False)
    for name in _rounds(plan, SIZES):
        seconds, mebibytes = _run("photo", *map(str, SIZES[name]))
        rate.add(name, 60 / seconds, peer=False)
        memory.limits[name] = MOST_PHOTO_MIB
        memory.add(name, mebibytes, peer=False)
    return [rate, memory]


def mails(plan: Plan) -> list[Table]:
    rate = Table(f"{MAILS} mails with {MAIL_MB} MB each, at once, over 4 connections", "mails/s")
    memory = Table("Peak memory of the process that sends them", "MiB", more_is_better=False)
    name = "Penstock"
    memory.limits[name] = MOST_MAILS_MIB
    for _ in _rounds(plan, [name]):
        seconds, mebibytes = _run("mails", str(MAILS), str(MAIL_MB))
        rate.add(name, MAILS / seconds, peer=False)
        memory.add(name, mebibytes, peer=False)
    return [rate, memory]


def reports(plan: Plan) -> list[Table]:
    rows = plan.jobs(1_000_000)
    rate = Table(f"A report of {rows:,} rows of 5 columns from PostgreSQL", "rows/s")
    memory = Table("Peak memory of the process that builds it", "MiB", more_is_better=False)
    rate.requirements.append(Requirement("CSV", BARE, 0.5))
    url, table = plan.servers.postgres_url, "bench_sales"
    _execute(url, f"DROP TABLE IF EXISTS {table}", _FILL.format(table=table, rows=rows))
    for name in _rounds(plan, [BARE, *FORMS]):
        form, most = FORMS.get(name, ("bare", None))
        seconds, mebibytes = _run("report", form, before=(url, table))
        rate.add(name, rows / seconds, peer=name == BARE)
        if most is not None:
            memory.limits[name] = most
        memory.add(name, mebibytes, peer=name == BARE)
    return [rate, memory]


def syncs(plan: Plan) -> list[Table]:
    records = plan.jobs(RECORDS)
    rate = Table(f"A sync of {records:,} records, in pages of 1000, into PostgreSQL", "records/s")
    memory = Table("Peak memory of the process that syncs them", "MiB", more_is_better=False)
    url, table = plan.servers.postgres_url, "bench_records"
    for name in _rounds(plan, ["Penstock"]):
        _execute(url, f"DROP TABLE IF EXISTS {table}")
        first, second, mebibytes = _run("sync", url, table, str(records), folder=False)
        for run, seconds in (("all are new", first), ("all have changed", second)):
            rate.limits[run] = 5000.0
            rate.add(run, records / seconds, peer=False)
        memory.add(name, mebibytes, peer=False)
    return [rate, memory]


def workers(plan: Plan) -> list[Table]:
    """All four."""
    lines: list[Callable[[Plan], list[Table]]] = [photos, mails]
    if plan.servers.has_postgres:
        lines += [reports, syncs]
    return [table for line in lines for table in line(plan)]


def _rounds(plan: Plan, names: Iterable[str]) -> list[str]:
    return [*names] * plan.rounds


def _run(program: str, *words: str, before: tuple[str, ...] = (), folder: bool = True) -> list[float]:
    """Numbers that a program prints."""
    say(f"{program} {' '.join(words[-1:])}")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch:
        arguments = [*before, *([scratch] if folder else []), *words]
        command = [sys.executable, "-m", f"benchmarks.programs.builtin.{program}", *arguments]
        ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise BenchError(f"{program} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return [float(number) for number in ended.stdout.split()]


def _execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()
