"""Connections of a test in the place of every producer's, those made before included."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from penstock.producers.enqueue.envelopes import EnvelopeBuilder
from penstock.producers.handles.connections import LedgerConnections
from penstock.producers.senders import AsyncSender, Sender


@dataclass(frozen=True)
class Override:
    """Connections that producers use in place of their own.

    Attributes:
        sender, async_sender: they take every envelope.
        ledger: that of handles and unique jobs.
        adjust: a producer's own builder → the one it uses.
    """

    sender: Sender
    async_sender: AsyncSender
    ledger: LedgerConnections
    adjust: Callable[[EnvelopeBuilder], EnvelopeBuilder]


class Overridable(Protocol):
    def use(self, override: Override | None) -> None: ...


_lock = threading.RLock()
_producers: weakref.WeakSet[Overridable] = weakref.WeakSet()
_overrides: list[Override] = []


def register_producer(producer: Overridable) -> None:
    """Have a new producer follow the override of now and those to come."""
    with _lock:
        _producers.add(producer)
        if _overrides:
            producer.use(_overrides[-1])


@contextmanager
def override_connections(override: Override) -> Iterator[None]:
    """Give all producers of this process these connections while the block runs. Blocks may be nested."""
    with _lock:
        _overrides.append(override)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _overrides.remove(override)
            _apply()


def _apply() -> None:
    override = _overrides[-1] if _overrides else None
    for producer in list(_producers):
        producer.use(override)
