"""Ledgers of a round's own: their servers, users and disks may be spoiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from chaos_site import running_postgres
from support.servers.databases import MariadbServer, PgBouncer, run

POOLED = 8
"""Connections of PgBouncer to PostgreSQL."""
DISK_MEGABYTES = 48


@dataclass(frozen=True)
class Ledger:
    """An empty database.

    Attributes:
        url: for workers, dispatchers and the producer. Its user owns the database, and is not a superuser.
        admin_url: of a user whom no fault concerns.
        disk: the folder of the small disk that has the data, if it is on one.
        pooler: between the database and those who use `url`.
    """

    url: str
    admin_url: str
    disk: Path | None = None
    pooler: PgBouncer | None = None

    def run(self, *statements: str) -> None:
        """Run statements as an administrator."""
        run(self.admin_url, *statements)


@contextmanager
def open_ledger(name: str, folder: Path) -> Iterator[Ledger]:
    """A ledger: `sqlite`, `postgres`, `mariadb` or `pgbouncer`; `sqlite on a disk` or `postgres on a disk` of its own,
    which can be filled."""
    with ExitStack() as opened:
        match name:
            case "sqlite":
                url = f"sqlite:///{folder}/ledger.db"
                yield Ledger(url, url)
            case "sqlite on a disk":
                disk = opened.enter_context(small_disk(folder / "disk"))
                url = f"sqlite:///{disk}/ledger.db"
                yield Ledger(url, url, disk)
            case "mariadb":
                mariadb = MariadbServer(folder / "mariadb")
                opened.callback(mariadb.close)
                mariadb.start()
                run(mariadb.url, "CREATE USER app", "GRANT ALL ON ledger.* TO app")  # root writes whatever is set
                yield Ledger(mariadb.url.replace("root@", "app@"), mariadb.url)
            case _:
                yield _postgres(name, opened)


def _postgres(name: str, opened: ExitStack) -> Ledger:
    server = opened.enter_context(running_postgres())
    disk, where = None, ""
    run(server.url, "CREATE ROLE app LOGIN")
    if name == "postgres on a disk":
        disk = opened.enter_context(small_disk(server.folder / "disk"))
        shutil.chown(disk, "postgres", "postgres")
        run(server.url, f"CREATE TABLESPACE small LOCATION '{disk}'")
        where = " TABLESPACE small"
    run(server.url, f"CREATE DATABASE ledger OWNER app{where}")
    admin = sa.make_url(server.url).set(database="ledger")
    url = admin.set(username="app").render_as_string(hide_password=False)
    pooler = None
    if name == "pgbouncer":
        pooler = PgBouncer(url, pool_size=POOLED)
        opened.callback(pooler.close)
        pooler.start()
        url = pooler.url
    return Ledger(url, admin.render_as_string(hide_password=False), disk, pooler)


def can_mount() -> bool:
    """Whether this user may mount a disk."""
    return os.getuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few megabytes, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """No byte of the disk is free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    yield
    filler.unlink()
