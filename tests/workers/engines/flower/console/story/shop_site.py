"""A whole installation of the shop, and a person who clicks through its console."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from served import Flower
from support.polling import until
from support.stack import Stack

from penstock.config.sections.passwords import hash_password
from penstock.ledger.rows import audit
from penstock.ledger.sql.tables import jobs
from penstock.workers.local.up.redis_server import free_port

HERE = Path(__file__).parent
PASSWORD = "correct horse"
PEOPLE = {"vera": "viewer", "otto": "operator", "ada": "admin"}
LONGEST_WAIT_MILLISECONDS = 90_000


class Shop(Stack):
    """Workers, a dispatcher and a console with three people: vera looks, otto is an operator, ada an admin."""

    def run(self, command: Any, **changes: str) -> subprocess.Popen[bytes]:
        return super().run(command, **{"PYTHONPATH": str(HERE), **changes})

    def start_worker_of(self, *queues: str) -> subprocess.Popen[bytes]:
        # A name of its own: on RabbitMQ the queue of a node's remote control belongs to the whole virtual host.
        name = f"shop-{len(self.processes)}-{self.settings.prefix}"
        command = ["worker", "--engine", self.engine, "--queues", ",".join(queues), "--concurrency", "10"]
        return self.run([*command, "--name", name, "--import", "shop_jobs"])

    def start_dispatcher(self) -> subprocess.Popen[bytes]:
        return self.run(["dispatcher", "--import", "shop_jobs"])

    def start_console(self) -> Flower:
        hashed = hash_password(PASSWORD)
        users = [
            f'[[console.users]]\nname = "{name}"\nrole = "{role}"\npassword_hash = "{hashed}"\n'
            for name, role in PEOPLE.items()
        ]
        (self.folder / "penstock.toml").write_text("".join(users))
        port = free_port()
        process = self.run(["flower", "--port", str(port), "--import", "shop_jobs"])
        console = Flower(port)
        answers = lambda: console.get("healthcheck", login="") is not None  # noqa: E731
        until(answers, "the console", unless=lambda: self.logs() if process.poll() is not None else None)
        return console

    def states(self, kind: str, tenant: str | None = None) -> dict[str, int]:
        """State → how many jobs of this kind, and tenant, the ledger has in it."""
        select = sa.select(jobs.c.state, sa.func.count()).where(jobs.c.kind == kind).group_by(jobs.c.state)
        if tenant is not None:
            select = select.where(jobs.c.tenant == tenant)
        rows = self.database.read(lambda connection: connection.execute(select).all())
        return {str(state): count for state, count in rows}

    def rows(self, kind: str) -> list[Any]:
        select = sa.select(jobs).where(jobs.c.kind == kind)
        return list(self.database.read(lambda connection: connection.execute(select).all()))

    def acts(self) -> list[tuple[str, str, str, str | None, int]]:
        """Actor, act, kind and name of the subject, and count of each line of the audit log, the oldest first."""
        lines = reversed(audit.find(self.database, limit=500))
        return [(line.actor, line.act, line.subject_kind, line.subject, line.count) for line in lines]


class Person:
    """Someone at a browser, who uses links, fields and buttons alone.

    Arguments:
        page: of the console, as Playwright has it.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        page.set_default_timeout(LONGEST_WAIT_MILLISECONDS)

    def go(self, label: str) -> None:
        """Open a page by the navigation."""
        navigation = self.page.get_by_role("navigation", name="Primary navigation")
        link = navigation.get_by_role("link", name=label, exact=True)
        if not link.is_visible():
            navigation.get_by_role("button", name="More").click()
        link.click()
        self.page.get_by_role("heading", name=label, exact=True, level=1).wait_for()

    def search(self, text: str) -> None:
        field = self.page.get_by_role("searchbox")
        field.fill(text)
        field.press("Enter")

    def row(self, name: str) -> Any:
        """The row of a table with this heading."""
        return self.page.locator("tr", has=self.page.get_by_role("rowheader", name=name, exact=True))

    def agree(self) -> None:
        self.page.get_by_role("button", name="Do it").click()

    def sees(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def pause(self, name: str, reason: str) -> None:
        """Pause the queue or the kind of a row."""
        row = self.row(name)
        row.locator("summary", has_text="Pause").click()
        row.get_by_label("Reason").first.fill(reason)
        row.get_by_role("button", name="Pause", exact=True).click()
        self.page.locator(".console-banner", has_text=reason).wait_for()

    def resume(self, reason: str) -> None:
        """End the pause that the line on top of each page shows with this reason."""
        banner = self.page.locator(".console-banner", has_text=reason)
        banner.get_by_role("button", name="Resume").click()
        banner.wait_for(state="detached")
