"""A handler that was taken over fails its own attempt, whatever it writes to the pipe of its worker."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from workers.executor.attempt.child.isolated_jobs import Echo
from workers.executor.bench import Bench
from workers.executor.misbehaving.attack_jobs import ATTACKS, HALF, Attack, Large

from penstock.workers.executor.attempt.child.logs import handle_record
from penstock.workers.executor.attempt.child.pipe import LONGEST_RESULT


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_no_message_of_a_child_fails_its_attempt_and_runs_nothing(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    worker = bench.worker()
    bomb = tmp_path / "bomb"
    status = bench.run(Attack(name=name, file=str(bomb)))
    assert not bomb.exists()
    assert (status.state, status.attempt) == ("dead", 1)
    assert "wrote to its pipe something that is not a message" in status.error
    assert bench.run(Echo(text="fine")).result == "fine"
    assert bench.workers == [worker]


@pytest.mark.parametrize("name", HALF)
def test_half_a_frame_of_a_child_that_is_gone_is_a_failed_attempt(bench: Bench, name: str) -> None:
    bench.worker()
    status = bench.run(Attack(name=name))
    assert (status.state, status.attempt) == ("dead", 1)
    assert "ended with exit code 0 and no result" in status.error
    assert bench.run(Echo(text="fine")).result == "fine"


def test_a_result_that_a_worker_does_not_take_is_refused_in_the_child_with_the_limit(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Large(size=LONGEST_RESULT))
    assert status.state == "dead"
    assert f"a worker takes {LONGEST_RESULT:,}, so put it into the storage" in status.error


def test_a_record_cannot_pass_for_one_of_another_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forged = {"name": "forged", "levelno": 30, "msg": "%s", "job_id": "of another", "attempt": 9, "exc_info": True}
    handle_record(forged, {"job_id": "its own", "attempt": 1})
    [record] = caplog.records
    assert (record.job_id, record.attempt, record.exc_info) == ("its own", 1, None)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no name or level"):
        handle_record({"name": "forged", "levelno": "high"}, {"job_id": "its own", "attempt": 1})
