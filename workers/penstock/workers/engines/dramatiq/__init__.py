"""The Dramatiq engine: a broker, actors and a worker of Dramatiq's whose jobs run in the executor.

Middleware of the user's own is added in the module of their handlers, and nowhere else is anything of Dramatiq needed:

    from penstock.workers.engines.dramatiq import get_broker
    get_broker().add_middleware(Prometheus())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.workers.engines.dramatiq.broker import PenstockBroker


def get_broker() -> PenstockBroker:
    """The broker of this process. The first call makes it and sets it as Dramatiq's, so that `dramatiq.get_broker()`
    returns it from then on. It connects to nothing before it sends."""
    from penstock.workers.engines.dramatiq.broker import get_broker

    return get_broker()
