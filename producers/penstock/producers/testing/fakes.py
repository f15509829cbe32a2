"""What producers see in a test, in the place of their sender, their ledger and their checks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.config.errors import WaitTimeout
from penstock.producers.enqueue.options import Duration, Preparation
from penstock.producers.handles.connections import LedgerLink
from penstock.producers.storage import Storage
from penstock.schemas.wire.codec import Envelope

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.producers.testing.kit import Kit


@dataclass(frozen=True)
class Ahead(Preparation):
    """Absolute times are meant on the test's clock."""

    ahead: timedelta = timedelta(0)

    def _due_at(self, kind: str, now: datetime, delay: Duration | None, run_at: datetime | None) -> datetime | None:
        if run_at is not None and run_at.tzinfo is not None:
            run_at -= self.ahead
        return super()._due_at(kind, now, delay, run_at)


class Catcher:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def send(self, envelopes: Sequence[Envelope]) -> None:
        self._kit._catch(envelopes)
        self._kit._run_inline()

    def ping(self) -> None: ...

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: len(self._kit.enqueued(queue=queue, delay=0)) for queue in queues}

    def close(self) -> None: ...


class AsyncCatcher:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    async def send(self, envelopes: Sequence[Envelope]) -> None:
        self._kit._catch(envelopes)
        if self._kit.inline:
            await asyncio.to_thread(self._kit._run_inline)

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class Link(LedgerLink):
    """Shows handles the test's ledger. An app that closes its producer leaves it open for the test."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self._kit = kit

    def open(self, waiter: object = None) -> Database:
        return self._kit._open()

    def open_storage(self) -> Storage:
        return self._kit._open_storage()

    def watching(self) -> Any:
        return NobodyRuns()

    def async_watching(self) -> Any:
        return NobodyRuns()

    def close(self) -> None: ...

    async def close_async(self) -> None: ...


class NobodyRuns:
    """In the place of those who watch: waiting would never end."""

    def join(self, job_id: str) -> NoReturn:
        raise WaitTimeout(f"job {job_id} has not run: in a test it does when drain() is called; or set inline")
