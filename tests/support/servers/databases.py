"""Database servers of a test's own, on free ports, which it may stop and start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from penstock.workers.local.up.redis_server import free_port
from support.polling import SETTLE_SECONDS, retry
from support.servers.processes import freeze

_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))


def run(url: str, *statements: str) -> None:
    """Run statements on a server or database, each in a transaction of its own."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


class PostgresServer:
    """PostgreSQL. It does not run as root: then the user `postgres` has it, in a folder that is not pytest's, which
    only its owner may enter."""

    def __init__(self) -> None:
        pg_ctl = shutil.which("pg_ctl") or (str(_POSTGRES[-1]) if _POSTGRES else None)
        if pg_ctl is None:
            pytest.skip("PostgreSQL is not installed: no server that may be stopped")
        self._bin, self.port = Path(pg_ctl).parent, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._user = {"user": "postgres", "group": "postgres"}
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start and wait until it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", str(int(SETTLE_SECONDS)), "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, as a crash would: commits are recovered from its log at the next start."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def stall(self) -> None:
        """Answer nothing from now on. The kernel still takes connections and packets for it."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                freeze(pid)

    def resume(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _pids(self) -> Iterator[int]:
        """The server and the processes of its connections that are there when it has been dealt with: stopped, it
        makes no more of them."""
        server = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        yield server
        yield from map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())

    def _run(self, program: str, *arguments: str) -> None:
        # Not a pipe: the server would keep it open.
        with (self.folder / f"{program}.out").open("wb") as output:
            done = subprocess.run(
                [self._bin / program, *arguments], cwd=self.folder, stdout=output, stderr=output, **self._user
            )
        assert done.returncode == 0, (self.folder / f"{program}.out").read_text(errors="replace")


class MariadbServer:
    """MariaDB with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        install, server = shutil.which("mariadb-install-db"), shutil.which("mariadbd")
        if install is None or server is None:
            pytest.skip("MariaDB is not installed: no server that may be stopped")
        self._server, self.folder, self.port = server, folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._user = ["--user=root"] if os.getuid() == 0 else []
        command = [install, "--no-defaults", f"--datadir={folder}/data", "--auth-root-authentication-method=normal"]
        subprocess.run([*command, "--skip-test-db", *self._user], check=True, capture_output=True, cwd=folder)

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/ledger"

    def start(self) -> None:
        """Start and wait until it takes connections."""
        options = [f"--datadir={self.folder}/data", f"--port={self.port}", "--bind-address=127.0.0.1"]
        options += [f"--socket={self.folder}/socket", f"--pid-file={self.folder}/pid"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._server, "--no-defaults", *options, *self._user], stdout=log, stderr=log, cwd=self.folder
            )
        engine = sa.create_engine(sa.make_url(self.url).set(database=""), poolclass=sa.pool.NullPool)
        process, log_file = self._process, self.folder / "log"

        def create_database() -> None:
            with engine.begin() as connection:
                connection.execute(sa.text("CREATE DATABASE IF NOT EXISTS ledger"))

        def ended() -> str | None:
            return None if process.poll() is None else f"it ended: {log_file.read_text(errors='replace')[-2000:]}"

        retry(create_database, sa.exc.OperationalError, unless=ended, pause=0.1)

    def stall(self) -> None:
        """Answer nothing from now on. The kernel still takes connections and packets for it."""
        assert self._process is not None
        freeze(self._process.pid)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """At once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    close = stop


class PgBouncer:
    """PgBouncer in transaction mode in front of a PostgreSQL.

    Arguments:
        url: of the database; its user needs no password.
        pool_size: connections to the database.
    """

    def __init__(self, url: str, *, pool_size: int) -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            pytest.skip("PgBouncer is not installed")
        self._program, self._target, self.port = program, sa.make_url(url), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-pgbouncer-"))
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._user = {"user": "postgres", "group": "postgres"}
            shutil.chown(self.folder, "postgres", "postgres")
        target = self._target
        (self.folder / "users").write_text(f'"{target.username}" ""\n')
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\n{target.database} = host={target.host} port={target.port or 5432}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.folder}/users\npool_mode = transaction\n"
            f"default_pool_size = {pool_size}\nmax_client_conn = 200\nlogfile = {self.folder}/log\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        url = self._target.set(host="127.0.0.1", port=self.port).update_query_dict({"pgbouncer": "true"})
        return url.render_as_string(hide_password=False)

    def start(self) -> None:
        """Start and wait until it takes connections."""
        self._process = process = subprocess.Popen(
            [self._program, "-q", "pgbouncer.ini"], cwd=self.folder, stderr=subprocess.DEVNULL, **self._user
        )
        engine = sa.create_engine(
            self._target.set(host="127.0.0.1", port=self.port),
            poolclass=sa.pool.NullPool,
            connect_args={"prepare_threshold": None},
        )
        log_file = self.folder / "log"

        def ended() -> str | None:
            return None if process.poll() is None else f"it ended: {log_file.read_text(errors='replace')[-2000:]}"

        retry(lambda: engine.connect().close(), sa.exc.OperationalError, unless=ended, pause=0.1)

    def stop(self) -> None:
        """At once: every connection is cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
