"""Workflows in the tests of an app: driven by the testing kit, without any server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from support.workflows import jobs as acme

from penstock.config.errors import JobFailed
from penstock.config.settings import Settings
from penstock.producers import Producer
from penstock.producers.testing import testing
from penstock.workers.workflows import Workflow, step


@pytest.fixture(autouse=True)
def _nothing_done() -> Iterator[None]:
    acme.done.clear()
    acme.broken.clear()
    yield
    acme.broken.clear()


def test_drain_runs_a_workflow_to_its_end() -> None:
    with testing() as penstock, Producer("redis://nowhere") as producer:
        handle = producer.enqueue(acme.Nightly(regions=["north", "south"]))
        runs = penstock.drain()
        assert [run.job.kind().name for run in runs] == ["wf.nightly", "wf.sync", "wf.report", "wf.report", "wf.mail"]
        assert handle.result() == "sent 2"


def test_a_step_sleeps_until_the_test_travels() -> None:
    with testing() as penstock, Producer("redis://nowhere") as producer:
        handle = producer.enqueue(acme.Reminding(seconds=3 * 86_400.0))
        penstock.drain()
        assert acme.done == ["mail welcome"]
        penstock.travel(timedelta(days=3))
        penstock.drain()
        assert acme.done == ["mail welcome", "mail remember"]
        assert handle.status().state == "succeeded"


def test_an_error_of_a_step_is_raised_by_drain_and_compensated_after_it() -> None:
    acme.broken.add("car")
    with testing() as penstock, Producer("redis://nowhere") as producer:
        handle = producer.enqueue(acme.Trip())
        with pytest.raises(ValueError, match="no car left"):
            penstock.drain()
        penstock.travel(timedelta(hours=1))
        penstock.drain(raising=False)
        assert acme.done[-2:] == ["release hotel-1", "release flight-1"]
        assert handle.status().state == "dead"


def test_a_schedule_starts_a_workflow() -> None:
    rule = {"kind": "wf.nightly", "cron": "0 3 * * *", "payload": {"regions": ["north"]}}
    with testing(Settings.model_validate({"schedules": {"nightly": rule}})) as penstock:
        penstock.travel(timedelta(days=1))
        runs = penstock.drain()
        assert [run.job.kind().name for run in runs] == ["wf.nightly", "wf.sync", "wf.report", "wf.mail"]


class Faulty(Workflow, kind="wf.faulty", queue="wf"):
    how: str

    @step
    def first(self) -> acme.Mail:
        if self.how == "raises":
            raise LookupError("no such customer")
        return acme.Release(what="car")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ("raises", LookupError, "no such customer"),
        ("makes another job", JobFailed, "its method made Release"),
    ],
)
def test_drain_raises_what_a_workflow_died_of(how: str, error: type[Exception], reason: str) -> None:
    with testing() as penstock, Producer("redis://nowhere") as producer:
        handle = producer.enqueue(Faulty(how=how))
        with pytest.raises(error, match=reason):
            penstock.drain()
        penstock.drain()
        assert handle.status().state == "dead"
        assert reason in str(handle.status().error)


def test_drain_raises_that_nobody_answered_a_workflow_in_time() -> None:
    with testing() as penstock, Producer("redis://nowhere") as producer:
        producer.enqueue(acme.Approved(seconds=60, lenient=False))
        penstock.drain()
        penstock.travel(minutes=2)
        with pytest.raises(JobFailed, match="nobody answered in time"):
            penstock.drain()


def test_drain_that_does_not_raise_leaves_a_workflow_dead() -> None:
    with testing() as penstock, Producer("redis://nowhere") as producer:
        handle = producer.enqueue(Faulty(how="raises"))
        penstock.drain(raising=False)
        assert handle.status().state == "dead"
