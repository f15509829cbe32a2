from __future__ import annotations

from contextlib import ExitStack

import pytest
from workers.brokers.stock.moving import MakeIntake

from penstock.workers.brokers.stock.intake import StockIntake, open_stock_intake


@pytest.fixture
def make_intake(broker_url: str, stock_queue: str, prefix: str, closing: ExitStack) -> MakeIntake:
    """Intakes of a queue that does not exist and of the test's own."""

    def make() -> StockIntake:
        intake = open_stock_intake(broker_url, [f"{prefix}missing", stock_queue], prefix)
        closing.callback(intake.close)
        return intake

    return make
