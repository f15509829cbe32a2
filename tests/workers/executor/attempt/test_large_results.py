"""Results that the ledger does not take: where they are stored, how they are read, and what happens when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.ledgers import change, claimed, end, message, row_of
from support.polling import WAIT_SECONDS, until

from penstock.config.errors import ObjectNotFound, StorageError
from penstock.config.settings import Settings
from penstock.ledger.queries.results import result_ref, write_result
from penstock.ledger.queries.status import read_status
from penstock.ledger.sql.database import Database
from penstock.producers.handles.handles import AsyncJobHandle
from penstock.producers.storage import FileStorage, Storage
from penstock.schemas import Job, Outcome, RetryPolicy, State
from penstock.workers import Context, handles, override
from penstock.workers.engines.inline import Inline


class Produce(Job, kind="large.produce", queue="large", retry=RetryPolicy(max_attempts=1)):
    text: str
    times: int
    in_session: bool = False


@handles(Produce)
def produce(job: Produce, ctx: Context) -> str:
    if job.in_session:
        assert ctx.session is not None
    return job.text * job.times


class Stolen(Job, kind="large.stolen", queue="large"): ...


taking_over: list[Callable[[str], None]] = []


@handles(Stolen)
def stolen(job: Stolen, ctx: Context) -> str:
    taking_over[-1](ctx.job_id)
    return "x" * 5000


@pytest.fixture
def settings(ledger_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=ledger_url, storage_url=f"file:{tmp_path}/storage", max_result_bytes_inline=1000, lease_seconds=5
    )


@pytest.fixture
def inline(settings: Settings) -> Iterator[Inline]:
    with Inline(settings, queues=["large"]) as inline:
        yield inline


@pytest.mark.parametrize(
    ("text", "times", "in_session", "stored"),
    [("x", 998, False, False), ("x", 999, True, True), ("ж", 500, False, True), ("x", 300_000, False, True)],
)
def test_a_large_result_goes_to_the_storage_and_is_read_from_there(
    inline: Inline, ledger: Database, tmp_path: Path, text: str, times: int, in_session: bool, stored: bool
) -> None:
    handle = inline.producer.enqueue(Produce(text=text, times=times, in_session=in_session))
    assert handle.result(WAIT_SECONDS) == handle.result(as_type=str) == text * times
    row = row_of(ledger, handle.id)
    assert ((row.result is None), (row.result_ref is not None)) == (stored, stored)
    objects = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert len(objects) == stored
    awaited = AsyncJobHandle(handle.id, handle.kind, handle.queue, inline.producer._ledger)
    assert asyncio.run(awaited.result()) == text * times


def test_the_default_limit_is_64_kib() -> None:
    assert Settings().max_result_bytes_inline == 65_536


def test_a_storage_that_cannot_be_written_fails_the_attempt_and_not_the_worker(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "storage").write_text("a file where the folder should be")
    with Inline(settings, queues=["large"]) as inline:
        status = inline.producer.enqueue(Produce(text="x", times=5000)).wait(WAIT_SECONDS)
        assert status.state == "dead"
        assert "its result of 5002 bytes is over max_result_bytes_inline (1000)" in str(status.error)
        assert "cannot be put into the storage" in str(status.error)
        assert inline.producer.enqueue(Produce(text="x", times=5)).result(WAIT_SECONDS) == "xxxxx"


def test_a_missing_result_is_reported_and_hides_nothing_else(inline: Inline, tmp_path: Path) -> None:
    handle = inline.producer.enqueue(Produce(text="x", times=5000))
    assert handle.wait(WAIT_SECONDS).state == "succeeded"
    [files] = list((tmp_path / "storage").rglob("*.json"))
    files.unlink()
    status = handle.status()
    assert status.state == "succeeded"
    for read in (lambda: status.result, handle.result):
        with pytest.raises(ObjectNotFound, match="not in the storage any more"):
            read()

    async def ask() -> Any:
        status = await AsyncJobHandle(handle.id, "", "", inline.producer._ledger).status()
        assert status.state == "succeeded"
        return status.result

    with pytest.raises(ObjectNotFound, match="not in the storage any more"):
        asyncio.run(ask())


def test_a_status_without_a_storage_says_where_the_result_is(ledger: Database) -> None:
    claim = claimed(ledger, message(Produce(text="x", times=1)))
    end(ledger, claim, Outcome.SUCCEEDED, result="2", result_ref="results/j/1.json")
    status = read_status(ledger, claim.message.id)
    assert status is not None
    with pytest.raises(StorageError, match=r"results/j/1\.json"):
        _ = status.result
    assert "results/j" not in repr(status)


class Noting(FileStorage):
    """Records the deleted keys."""

    deleted: ClassVar[list[str]] = []

    def delete(self, key: str) -> None:
        super().delete(key)
        self.deleted.append(key)


def test_the_result_of_a_refused_outcome_is_deleted(inline: Inline, ledger: Database, tmp_path: Path) -> None:
    """Its worker was silent for too long; the one that has the job by then has stored its own."""
    storage = Noting(tmp_path / "storage")

    def take_over(job_id: str) -> None:
        ref = write_result(storage, job_id, 7, b'"theirs"')
        change(ledger, job_id, fence=7, state=State.SUCCEEDED, result_ref=ref)

    taking_over.append(take_over)
    with override(Storage, storage):
        handle = inline.producer.enqueue(Stolen())
        until(lambda: result_ref(handle.id, 1) in storage.deleted)
    assert storage.find(result_ref(handle.id, 1)) is None
    assert handle.result(WAIT_SECONDS) == "theirs"
