"""Handlers of adopted kinds that send their own job again, in each mode."""

from __future__ import annotations

import json

import pytest
from workers.executor.adopted.adopted_jobs import KINDS
from workers.executor.bench import Bench

from penstock.ledger.sql.tables import jobs


@pytest.mark.parametrize(("failed", "state", "attempt"), [(True, "retrying", 1), (False, "scheduled", 0)])
@pytest.mark.parametrize("mode", KINDS)
def test_the_job_goes_on_with_its_new_arguments(
    bench: Bench, mode: str, failed: bool, state: str, attempt: int
) -> None:
    bench.worker()
    status = bench.run(KINDS[mode](args=["a"], kwargs={"failed": failed}))
    assert (status.state, status.attempt, status.error) == (state, attempt, "not yet")
    [row] = bench.rows(jobs)
    assert json.loads(row.payload) == {"args": ["a", 1], "kwargs": {"failed": failed}, "request": {}}
