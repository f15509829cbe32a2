"""When the intake says that it consumes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from support.polling import until

from penstock.config.errors import BrokerUnavailable
from penstock.config.supervision import faults
from penstock.workers.brokers import Consumer, Delivery
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.runtime.meter import Meter


class HalfOpen(Consumer):
    """A broker that takes connections; whether it also hands out anything can be set."""

    def __init__(self) -> None:
        self.queues = set()
        self.opened, self.hands_out = 0, False

    def open(self) -> None:
        self.opened += 1

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        time.sleep(0.01)
        if not self.hands_out:
            raise BrokerUnavailable("its queues cannot be opened")
        return []

    def wake(self) -> None: ...

    def stop_consuming(self) -> None: ...


class Sink:
    def wait_for_capacity(self, timeout_seconds: float) -> int:
        return 1

    def submit(self, deliveries: Sequence[Delivery]) -> None: ...


def test_a_broker_that_opens_and_hands_out_nothing_is_not_consumed() -> None:
    broker = HalfOpen()
    intake = Intake(broker, Sink(), Meter())
    before = faults["broker unavailable"]
    intake.start()
    seen = set()

    def opened_thrice() -> bool:
        seen.add(intake.alive)
        return broker.opened >= 3

    until(opened_thrice)
    assert seen == {False}
    broker.hands_out = True
    until(lambda: intake.alive)
    assert faults["broker unavailable"] == before + 1
    broker.hands_out = False
    until(lambda: not intake.alive)
    until(lambda: faults["broker unavailable"] == before + 2)
    intake.stop()
