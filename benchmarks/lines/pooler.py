"""A ledger on PostgreSQL behind PgBouncer in transaction mode with four connections, compared with a direct one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from benchmarks import entrants as who
from benchmarks.lines.drain import drained
from benchmarks.plan import Plan
from benchmarks.session import STALL_SECONDS, BenchError
from benchmarks.tables import Requirement, Table
from penstock.workers.local.up.redis_server import free_port

CONNECTIONS = 4
JOBS = 15_000


def postgres(plan: Plan) -> Table:
    table = Table(f"No-op jobs drained, PostgreSQL direct and behind PgBouncer, {CONNECTIONS} connections", "jobs/s")
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None or not plan.servers.has_postgres:
        table.notes.append("PgBouncer or PostgreSQL is missing")
        return table
    direct = who.ours("dramatiq", concurrency=100, ledger="PostgreSQL", task="tracked", jobs=JOBS)
    with _pgbouncer(program, sa.make_url(plan.servers.postgres_url), plan.servers.folder / "pgbouncer") as url:
        environment = {**direct.environment, "BENCH_LEDGER_URL": url}
        pooled = replace(direct, name=f"{direct.name}, PgBouncer", environment=environment)
        table.requirements = [Requirement(pooled.name, direct.name, 0.8)]

        def measure(entrant: who.Entrant) -> None:
            rate, cpu = drained(plan, entrant, plan.jobs(JOBS), broker="redis")
            table.add(entrant.name, rate, peer=False, cpu=cpu)

        plan.rounds_of([direct, pooled], measure)
    return table


@contextmanager
def _pgbouncer(program: str, target: sa.URL, folder: Path) -> Iterator[str]:
    """URL of a pooler of the run's own."""
    folder.mkdir()
    port = free_port()
    as_user = {}
    if os.getuid() == 0:  # it refuses to run as root
        as_user = {"user": "postgres", "group": "postgres"}
        for each in (folder, folder.parent):
            each.chmod(0o755)
        shutil.chown(folder, "postgres", "postgres")
    (folder / "users").write_text(f'"{target.username}" "{target.password or ""}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{target.database} = host={target.host} port={target.port or 5432}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = {CONNECTIONS}\n"
        "max_client_conn = 200\n"
    )
    with (folder.parent / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, "-q", "pgbouncer.ini"], cwd=folder, stdout=log, stderr=log, **as_user)
    pooled = target.set(host="127.0.0.1", port=port)
    engine = sa.create_engine(pooled, poolclass=sa.pool.NullPool, connect_args={"prepare_threshold": None})
    deadline = time.monotonic() + STALL_SECONDS
    try:
        while True:
            try:
                engine.connect().close()
                break
            except sa.exc.OperationalError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"PgBouncer does not take connections: {error}") from error
                time.sleep(0.1)
        yield pooled.update_query_dict({"pgbouncer": "true"}).render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()
