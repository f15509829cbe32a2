"""Jobs that name a section which the settings of a worker do not have, as in the middle of a deploy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.builtin.tools import settings
from support.polling import until
from workers.executor.bench import open_bench

from penstock.ledger.sql.tables import dead_letters, held_jobs
from penstock.schemas import Job
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.builtin.syncs import RunSync
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.schemas.builtin.webhooks import DeliverWebhook
from penstock.schemas.wire.codec import encode
from penstock.workers.handlers.registry import handlers

HOOK = DeliverWebhook(hook="shop", type="shop.opened", occurred_at=datetime(2026, 1, 31, tzinfo=UTC), data={})
LACKS = [
    (BuildReport(report="weekly"), "no report 'weekly' in penstock.toml; there is: none"),
    (RunSync(sync="orders"), "no sync 'orders' in penstock.toml; there is: none"),
    (ProcessUpload(key="a", policy="avatars"), "no policy 'avatars': penstock.toml has no [uploads.avatars]"),
    (HOOK, "no hook 'shop' in penstock.toml; there is: none"),
]


@pytest.mark.parametrize(("job", "lack"), LACKS, ids=[job.kind().name for job, _ in LACKS])
def test_a_job_whose_section_a_worker_lacks_is_held_back_for_others_and_then_dead(
    tmp_path: Path, job: Job, lack: str
) -> None:
    configured = settings(database_url=f"sqlite:///{tmp_path}/ledger.db", lease_seconds=10, grace_seconds=5)
    with open_bench(configured) as bench:
        bench.worker()
        bench.broker.send([encode(job, id="j1", queue="ex")])
        until(lambda: bench.idle() and bench.rows(held_jobs), "the held job")
        [held] = bench.rows(held_jobs)
        assert (held.job_id, held.reason) == ("j1", "not_configured")
        assert lack in held.detail
        assert bench.rows(dead_letters) == []
    with open_bench(configured.model_copy(update={"unknown_kind_grace": timedelta()})) as bench:
        bench.worker()
        bench.broker.send([encode(job, id="j2", queue="ex")])
        until(lambda: bench.idle() and bench.rows(dead_letters), "the dead letter")
        assert [(row.id, row.reason) for row in bench.rows(dead_letters)] == [("j2", "not_configured")]


def test_a_check_for_what_is_missing_that_fails_leaves_the_job_to_its_handler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: BuildReport, _settings: object, _tenant: str | None) -> str | None:
        raise LookupError(job.report)

    handler = handlers.find(BuildReport.kind())
    assert handler is not None
    monkeypatch.setitem(handlers._by_kind, handler.kind.name, replace(handler, missing=broken))
    configured = settings(database_url=f"sqlite:///{tmp_path}/ledger.db", lease_seconds=10, grace_seconds=5)
    with open_bench(configured) as bench:
        bench.worker()
        bench.broker.send([encode(BuildReport(report="weekly"), id="j1", queue="ex")])
        until(lambda: bench.idle() and bench.rows(dead_letters), "the dead letter")
        [letter] = bench.rows(dead_letters)
        assert (letter.reason, "no report 'weekly'" in letter.detail) == ("permanent", True)
    assert "the check of kind report.build for what is missing failed; its handler decides" in caplog.text
