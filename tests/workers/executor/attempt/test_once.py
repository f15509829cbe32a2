"""`ctx.once` in coroutines, threads and child processes, against a bank that is a file. Kills are in conformance."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.polling import WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.ledger import effects
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions.replay.replay import replay_one
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, InDoubt, NotDone, Permanent, handles
from penstock.workers.engines.inline import Inline

QUICK = RetryPolicy(max_attempts=4, first_delay=0.01, max_delay=0.05)


class RateLimited(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__("slow down")
        self.retry_after = retry_after


class Declined(Permanent): ...


class Pay(Job):
    """Options of a payment, and how it goes wrong."""

    file: str
    how: str


class PayAsync(Pay, kind="once.async", queue="once", retry=QUICK): ...


class PayInThread(Pay, kind="once.thread", queue="once", retry=QUICK): ...


class PayInChild(Pay, kind="once.child", queue="once", retry=QUICK): ...


class PayUntracked(Pay, kind="once.untracked", queue="once", retry=RetryPolicy(max_attempts=1), track=False): ...


class Wait(Job, kind="once.wait", queue="once", retry=RetryPolicy(max_attempts=1)):
    what: str


class Limited(Job, kind="once.limited", queue="once"):
    seconds: float


class LimitedInChild(Job, kind="once.limitedchild", queue="once"):
    seconds: float


MODES = pytest.mark.parametrize("kind", [PayAsync, PayInThread, PayInChild])
gate, reached = threading.Event(), threading.Event()


class Bank:
    """Knows by the id whether it has been paid; each call is a line."""

    def __init__(self, job: Pay) -> None:
        self.path, self.how = Path(job.file), job.how

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def note(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")

    def charge(self, effect_id: str) -> Any:
        first = not self.lines()
        if first and self.how == "not done":
            self.note("refused")
            raise NotDone("the line was dead") from ConnectionError("no route")
        if self.how == "declined":
            raise NotDone("card declined") from Declined("no money")
        if first and self.how == "fails before":
            self.note("called")
            raise ConnectionError("cut off before it was said")
        self.note(f"charge {effect_id}")
        if first and self.how.startswith("fails after"):
            raise ConnectionError("cut off after it was said")
        return object() if self.how == "odd result" else {"receipt": effect_id, "at": datetime(2026, 1, 1, tzinfo=UTC)}

    def find(self, effect_id: str) -> Any:
        self.note("asked")
        return {"receipt": effect_id} if f"charge {effect_id}" in self.lines() else None


@handles(PayAsync)
async def pay_async(job: PayAsync, ctx: Context) -> Any:
    bank = Bank(job)

    async def charge(effect_id: str) -> Any:
        await asyncio.sleep(0)
        return bank.charge(effect_id)

    async def find(effect_id: str) -> Any:
        await asyncio.sleep(0)
        return bank.find(effect_id)

    try:
        receipt = await ctx.once("charge").run(charge, ask=None if "no ask" in job.how else find)
        if job.how == "twice":
            return [receipt, await ctx.once("charge").run(charge)]
        return receipt
    except InDoubt as doubt:
        if job.how == "fails after, no ask, caught":
            return f"in doubt: {doubt.key} {doubt.effect_id}"
        raise


def pay(job: Pay, ctx: Context) -> Any:
    bank = Bank(job)
    try:
        receipt = ctx.once("charge").run(bank.charge, ask=None if "no ask" in job.how else bank.find)
        if job.how == "twice":
            return [receipt, ctx.once("charge").run(bank.charge)]
        return receipt
    except InDoubt as doubt:
        if job.how == "fails after, no ask, caught":
            return f"in doubt: {doubt.key} {doubt.effect_id}"
        raise


@handles(PayInThread)
def pay_in_thread(job: PayInThread, ctx: Context) -> Any:
    return pay(job, ctx)


@handles(PayInChild, isolate=True)
def pay_in_child(job: PayInChild, ctx: Context) -> Any:
    return pay(job, ctx)


@handles(PayUntracked)
def pay_untracked(job: PayUntracked, ctx: Context) -> Any:
    return pay(job, ctx)


@handles(Wait)
async def wait(job: Wait, ctx: Context) -> Any:
    once = ctx.once("wait")

    async def forever(_effect_id: str) -> None:
        reached.set()
        await asyncio.sleep(3600)

    match job.what:
        case "twice at a time":
            first = asyncio.create_task(once.run(forever))
            await asyncio.to_thread(reached.wait, WAIT_SECONDS)
            try:
                return await ctx.once("wait").run(forever)
            finally:
                first.cancel()
        case "after the session":
            await ctx.session.execute(sa.text("SELECT 1"))
            return await once.run(forever)
        case "gate":
            reached.set()
            await asyncio.to_thread(gate.wait, WAIT_SECONDS)
            return await once.run(lambda _effect_id: reached.clear())
        case "bad key":
            return ctx.once("")
    return await once.run(forever)


@handles(Limited)
async def limited(job: Limited) -> None:
    raise RateLimited(job.seconds)


@handles(LimitedInChild, isolate=True)
def limited_in_child(job: LimitedInChild) -> None:
    raise RateLimited(job.seconds)


@pytest.fixture
def inline(tmp_path: Path) -> Iterator[Inline]:
    gate.clear()
    reached.clear()
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/ledger.db",
        storage_url=f"file:{tmp_path}/storage",
        smtp_url=f"maildir:{tmp_path}/mail",
        lease_seconds=10,
        grace_seconds=5,
    )
    with Inline(settings, queues=["once"]) as engine:
        yield engine
        gate.set()


@pytest.fixture
def bank_file(tmp_path: Path) -> Path:
    return tmp_path / "bank"


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def letter(inline: Inline, job_id: str) -> Any:
    select = sa.select(dead_letters).where(dead_letters.c.id == job_id)
    return inline.database.read(lambda connection: connection.execute(select).first())


@MODES
def test_an_effect_is_called_once_and_its_result_is_returned_ever_after(
    inline: Inline, bank_file: Path, kind: type[Pay]
) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="twice"))
    status = handle.wait(WAIT_SECONDS)
    charged = effects.effect_id(handle.id, "charge")
    receipt = {"receipt": charged, "at": "2026-01-01T00:00:00Z"}
    assert (status.state, status.result) == ("succeeded", [receipt, receipt])
    assert lines(bank_file) == [f"charge {charged}"]
    [row] = effects.effects_of(inline.database, handle.id)
    assert (row.id, row.key, row.done_at is not None) == (charged, "charge", True)


@MODES
def test_a_failed_effect_is_looked_up_at_its_provider(inline: Inline, bank_file: Path, kind: type[Pay]) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="fails after"))
    status = handle.wait(WAIT_SECONDS)
    charged = effects.effect_id(handle.id, "charge")
    assert (status.state, status.result, status.failures) == ("succeeded", {"receipt": charged}, 1)
    assert lines(bank_file) == [f"charge {charged}", "asked"]


@MODES
def test_an_effect_that_its_provider_does_not_know_is_called_again(
    inline: Inline, bank_file: Path, kind: type[Pay]
) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="fails before"))
    assert handle.wait(WAIT_SECONDS).state == "succeeded"
    assert lines(bank_file) == ["called", "asked", f"charge {effects.effect_id(handle.id, 'charge')}"]


@MODES
def test_an_effect_without_a_lookup_is_a_dead_letter_until_a_person_decides(
    inline: Inline, bank_file: Path, kind: type[Pay]
) -> None:
    handles_ = [inline.producer.enqueue(kind(file=f"{bank_file}{n}", how="fails after, no ask")) for n in range(2)]
    for number, handle in enumerate(handles_):
        status = handle.wait(WAIT_SECONDS)
        charged = effects.effect_id(handle.id, "charge")
        assert (status.state, status.failures) == ("dead", 2)
        assert letter(inline, handle.id).reason == "in_doubt"
        assert charged in letter(inline, handle.id).detail
        assert lines(Path(f"{bank_file}{number}")) == [f"charge {charged}"]
    happened, not_happened = handles_
    effects.decide(inline.database, happened.id, "charge", happened=True, result='{"receipt": "found"}', actor="me")
    effects.decide(inline.database, not_happened.id, "charge", happened=False, actor="me")
    for handle in handles_:
        replay_one(inline.database, handle.id, actor="me")
        assert handle.wait(WAIT_SECONDS).state == "succeeded"
    assert happened.status().result == {"receipt": "found"}
    assert len(lines(Path(f"{bank_file}0"))) == 1
    assert len(lines(Path(f"{bank_file}1"))) == 2


@MODES
def test_a_handler_may_catch_the_doubt(inline: Inline, bank_file: Path, kind: type[Pay]) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="fails after, no ask, caught"))
    status = handle.wait(WAIT_SECONDS)
    assert status.result == f"in doubt: charge {effects.effect_id(handle.id, 'charge')}"


@MODES
def test_an_effect_that_raises_not_done_is_called_again(inline: Inline, bank_file: Path, kind: type[Pay]) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="not done"))
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.failures) == ("succeeded", 1)
    assert lines(bank_file) == ["refused", f"charge {effects.effect_id(handle.id, 'charge')}"]


@MODES
def test_the_error_behind_one_that_was_not_done_decides_about_the_retry(
    inline: Inline, bank_file: Path, kind: type[Pay]
) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="declined"))
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.failures) == ("dead", 1)
    assert letter(inline, handle.id).reason == "permanent"
    assert effects.effects_of(inline.database, handle.id) == []


@MODES
def test_a_result_that_cannot_be_kept_fails_the_attempt_and_the_effect_counts(
    inline: Inline, bank_file: Path, kind: type[Pay]
) -> None:
    handle = inline.producer.enqueue(kind(file=str(bank_file), how="odd result"))
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.result, status.failures) == ("succeeded", None, 1)
    assert len(lines(bank_file)) == 1


def test_once_requires_a_tracked_kind(inline: Inline, bank_file: Path) -> None:
    handle = inline.producer.enqueue(PayUntracked(file=str(bank_file), how="fine"))
    until(lambda: letter(inline, handle.id))
    assert "track" in letter(inline, handle.id).detail
    assert lines(bank_file) == []


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("twice at a time", "running already"),
        ("after the session", "swap them"),
        ("bad key", "1 to 255 characters"),
    ],
)
def test_misuse_of_once_says_so(inline: Inline, what: str, error: str) -> None:
    status = inline.producer.enqueue(Wait(what=what)).wait(WAIT_SECONDS)
    assert status.state == "dead"
    assert error in str(status.error)


def test_an_effect_that_is_cut_short_by_a_cancellation_stays_in_doubt(inline: Inline) -> None:
    handle = inline.producer.enqueue(Wait(what="cancel"))
    until(reached.is_set)
    handle.cancel()
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    [row] = effects.effects_of(inline.database, handle.id)
    assert row.done_at is None


def test_a_worker_that_lost_its_claim_does_not_call_the_effect(
    inline: Inline, caplog: pytest.LogCaptureFixture
) -> None:
    handle = inline.producer.enqueue(Wait(what="gate"))
    until(reached.is_set)
    take_over = sa.update(jobs).where(jobs.c.id == handle.id).values(fence=jobs.c.fence + 1, worker="dead by now")
    inline.database.write(lambda connection: connection.execute(take_over))
    gate.set()
    # Its delivery is released and claimed again; that attempt finds no started effect.
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.crashes, status.failures) == ("succeeded", 1, 0)
    [row] = effects.effects_of(inline.database, handle.id)
    assert row.fence == 3
    assert not [record for record in caplog.records if record.levelname == "CRITICAL"]


@pytest.mark.parametrize("kind", [Limited, LimitedInChild])
def test_an_error_that_asks_to_wait_is_obeyed(inline: Inline, kind: Any) -> None:
    before = datetime.now(UTC)
    handle = inline.producer.enqueue(kind(seconds=3600))
    until(lambda: handle.status().state == "retrying")
    due = handle.status().due_at
    assert due is not None
    assert due > before + timedelta(seconds=3599)
    dead = inline.producer.enqueue(kind(seconds=100_000)).wait(WAIT_SECONDS)
    assert dead.state == "dead"
    assert "max_retry_after" in letter(inline, dead.id).detail
