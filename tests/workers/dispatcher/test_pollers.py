from __future__ import annotations

import logging
import threading

import pytest

from penstock.config.errors import BrokerUnavailable
from penstock.config.supervision import faults
from penstock.workers.dispatcher.poller import Poller


class Flaky(Poller):
    """Fails `failures` times, then works."""

    name = "flaky"
    interval_seconds = 0.001

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__()
        self.failures, self.closed = failures, False
        self.worked = threading.Event()

    def run_once(self) -> bool:
        if self.failures:
            raise self.failures.pop(0)
        self.worked.set()
        return False

    def close(self) -> None:
        self.closed = True


def run(poller: Flaky) -> None:
    poller.start()
    assert poller.worked.wait(60)
    poller.stop()
    assert poller.join(60)
    assert poller.closed


def test_an_outage_is_logged_when_it_begins_and_when_it_ends_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    before = faults["broker unavailable"]
    with caplog.at_level(logging.WARNING, "penstock.dispatcher"):
        run(Flaky([BrokerUnavailable("redis is down") for _ in range(4)]))
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "redis is down" in caplog.text
    assert "works again" in caplog.text
    assert caplog.records[0].exc_info is None
    assert faults["broker unavailable"] == before + 1


def test_an_unexpected_error_is_logged_in_full_and_does_not_end_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "penstock.dispatcher"):
        run(Flaky([ZeroDivisionError("oops")]))
    assert caplog.records[0].exc_info is not None


def test_a_service_that_is_backing_off_stops_at_once() -> None:
    poller = Flaky([BrokerUnavailable("down") for _ in range(10_000)])
    poller.start()
    poller.stop()
    assert poller.join(60)
