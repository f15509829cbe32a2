"""A web backend of the round of the outbox: business rows and the jobs about them, in one transaction or in none.

    python chaos_outbox_backend.py sqlalchemy|django SEED NUMBER PAUSE JOURNAL URL…

It runs until it is killed. NUMBER is the number of its first order; PAUSE is how many seconds it rests after a
transaction on average. Before each, JOURNAL gets a line for each order: its number, the kind of its job, and what shall
become of it: `commit`, `rollback`, or `savepoint`, which is rolled back alone. Each transaction is in one of the
databases, drawn from SEED.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chaos_jobs import Chaotic, Least, LeastUntracked, Once, OnceThread
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from penstock.ledger.sql.database import Database
from penstock.producers.outbox import Outbox
from penstock.schemas.jobs.kind import PRIORITIES

ORDERED_QUEUE = "chaos-ordered"
"""Queue of the jobs with a key. No worker consumes it during the round, so the broker shows their order."""
ACCOUNTS = 12


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A business row, and the job about it.

    Attributes:
        number: of its job too.
        account: the key of its job, or None; turn: its place among the committed orders of that account.
    """

    __tablename__ = "chaos_orders"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str]
    kind: Mapped[str]
    account: Mapped[int | None]
    turn: Mapped[int | None]


class Account(Base):
    """Locked by every transaction that writes its orders, so their order is the order of the commits."""

    __tablename__ = "chaos_accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    turn: Mapped[int] = mapped_column(default=0)


class RolledBack(Exception):
    """Raised to leave a transaction or a savepoint."""


@dataclass
class Plan:
    """A transaction: some orders, then some more in a savepoint, and how each ends."""

    account: int | None
    outer: list[Chaotic]
    inner: list[Chaotic]
    keeps: bool
    commits: bool
    many: bool
    seconds: float

    def lines(self) -> str:
        outer = "commit" if self.commits else "rollback"
        inner = outer if self.keeps or not self.commits else "savepoint"
        fates = [*((job, outer) for job in self.outer), *((job, inner) for job in self.inner)]
        return "".join(f"{job.number} {job.kind().name} {fate}\n" for job, fate in fates)

    def options(self, draw: random.Random) -> dict[str, Any]:
        if self.account is not None:
            return {"queue": ORDERED_QUEUE, "key": f"account-{self.account}"}
        if draw.random() < 0.1:
            return {"delay": draw.uniform(0.1, 1.0)}
        return {"priority": draw.choice(PRIORITIES)}


def main() -> None:
    framework, seed, number, pause, journal, *urls = sys.argv[1:]
    draw = random.Random(f"{seed} {number}")
    write = {"sqlalchemy": _with_sqlalchemy, "django": _with_django}[framework](urls)
    numbers = iter(range(int(number), sys.maxsize))
    with open(journal, "a") as lines:
        while True:
            plan = _draw(draw, lambda: next(numbers))
            lines.write(plan.lines())
            lines.flush()
            write(draw.randrange(len(urls)), plan, draw)
            time.sleep(draw.expovariate(1 / float(pause)))


def _draw(draw: random.Random, number: Callable[[], int]) -> Plan:
    account = draw.randrange(ACCOUNTS) if draw.random() < 0.4 else None
    kinds: Sequence[type[Chaotic]] = (Least, LeastUntracked, Once, OnceThread)
    [outer, inner] = [[draw.choice(kinds)(number=number()) for _ in range(count)] for count in _counts(draw)]
    return Plan(
        account,
        outer,
        inner,
        keeps=draw.random() < 0.4,
        commits=draw.random() < 0.75,
        many=account is None and draw.random() < 0.2,
        seconds=draw.uniform(0, 0.01),  # with jobs written and not committed
    )


def _counts(draw: random.Random) -> tuple[int, int]:
    return draw.choice((1, 1, 2, 5)), draw.choice((0, 0, 0, 1, 3))


Writer = Callable[[int, Plan, random.Random], None]


def _with_sqlalchemy(urls: Sequence[str]) -> Writer:
    engines = [Database(url).engine for url in urls]
    outbox = Outbox(queues=(ORDERED_QUEUE,))

    def write_orders(shop: int, plan: Plan, draw: random.Random) -> None:
        with Session(engines[shop]) as session:

            def add(jobs: Sequence[Chaotic], turn: int) -> int:
                if plan.many:
                    handles = outbox.enqueue_many(session, jobs)
                else:
                    handles = [outbox.enqueue(session, job, **plan.options(draw)) for job in jobs]
                for count, (job, handle) in enumerate(zip(jobs, handles, strict=True), turn + 1):
                    session.add(Order(**_order(plan, job, handle.id, count)))
                return turn + len(jobs)

            account = None
            if plan.account is not None:
                account = session.get_one(Account, plan.account, with_for_update=True)
            turn = add(plan.outer, account.turn if account is not None else 0)
            try:
                with session.begin_nested():
                    after = add(plan.inner, turn)
                    session.flush()
                    if not plan.keeps:
                        raise RolledBack
                    turn = after
            except RolledBack:
                pass
            if account is not None:
                account.turn = turn
            session.flush()
            time.sleep(plan.seconds)
            if plan.commits:
                session.commit()
            else:
                session.rollback()

    return write_orders


def _with_django(urls: Sequence[str]) -> Writer:
    from django.db import connections, models, transaction
    from django_project import configuration  # also configures Django

    from penstock.producers.contrib.django import Outbox as DjangoOutbox

    class DjangoOrder(models.Model):  # type: ignore[misc]
        number = models.IntegerField(primary_key=True)
        job_id = models.TextField()
        kind = models.TextField()
        account = models.IntegerField(null=True)
        turn = models.IntegerField(null=True)

        class Meta:
            app_label = "chaos"
            db_table = Order.__tablename__

    class DjangoAccount(models.Model):  # type: ignore[misc]
        id = models.IntegerField(primary_key=True)
        turn = models.IntegerField()

        class Meta:
            app_label = "chaos"
            db_table = Account.__tablename__

    aliases = [f"shop-{number}" for number in range(len(urls))]
    databases = {alias: configuration(url) for alias, url in zip(aliases, urls, strict=True)}
    for options in databases.values():
        if options["ENGINE"].endswith("sqlite3"):
            options["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 30}
    connections.databases.update(connections.configure_settings({"default": {}, **databases}))
    outbox = DjangoOutbox(queues=(ORDERED_QUEUE,))

    def write_orders(shop: int, plan: Plan, draw: random.Random) -> None:
        alias = aliases[shop]

        def add(jobs: Sequence[Chaotic], turn: int) -> int:
            if plan.many:
                handles = outbox.enqueue_many(jobs, using=alias)
            else:
                handles = [outbox.enqueue(job, using=alias, **plan.options(draw)) for job in jobs]
            for count, (job, handle) in enumerate(zip(jobs, handles, strict=True), turn + 1):
                DjangoOrder.objects.using(alias).create(**_order(plan, job, handle.id, count))
            return turn + len(jobs)

        try:
            with transaction.atomic(using=alias):
                account = None
                if plan.account is not None:
                    account = DjangoAccount.objects.using(alias).select_for_update().get(id=plan.account)
                turn = add(plan.outer, account.turn if account is not None else 0)
                try:
                    with transaction.atomic(using=alias):
                        after = add(plan.inner, turn)
                        if not plan.keeps:
                            raise RolledBack
                        turn = after
                except RolledBack:
                    pass
                if account is not None:
                    account.turn = turn
                    account.save(using=alias)
                time.sleep(plan.seconds)
                if not plan.commits:
                    raise RolledBack
        except RolledBack:
            pass

    return write_orders


def _order(plan: Plan, job: Chaotic, job_id: str, turn: int) -> dict[str, Any]:
    keyed = plan.account is not None
    return {
        "number": job.number,
        "job_id": job_id,
        "kind": job.kind().name,
        "account": plan.account,
        "turn": turn if keyed else None,
    }


if __name__ == "__main__":
    main()
