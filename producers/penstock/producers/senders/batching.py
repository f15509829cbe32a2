"""Sending together what many coroutines enqueue at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import AsyncSender
from penstock.schemas.wire.codec import Envelope

log = logging.getLogger("penstock.producers")

AT_A_TIME = 4
"""Sendings under way, so that there is work while the broker has not answered yet."""


class BatchingSender:
    """An `AsyncSender` over another one, for one event loop: while sendings are under way, the next gathers.

    Arguments:
        alone: queues that may be full. A refusal is about one call, so theirs are not gathered.
    """

    def __init__(self, sender: AsyncSender, alone: Collection[str] = ()) -> None:
        self._sender, self._alone = sender, alone
        self._waiting: list[tuple[Sequence[Envelope], asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, envelopes: Sequence[Envelope]) -> None:
        """See `AsyncSender.send`. After BrokerUnavailable some may have been sent, also where it is only one."""
        if self._alone and any(envelope.queue in self._alone for envelope in envelopes):
            await self._sender.send(envelopes)
            return
        loop = asyncio.get_running_loop()
        sent = loop.create_future()
        self._waiting.append((envelopes, sent))
        if len(self._tasks) < AT_A_TIME:
            task = loop.create_task(self._send_all())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await sent

    async def ping(self) -> None:
        await self._sender.ping()

    async def close(self) -> None:
        await self._sender.close()

    async def _send_all(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            refusal: Exception | None = None
            try:
                await self._sender.send([envelope for envelopes, _ in together for envelope in envelopes])
            except BaseException as error:  # none may leave the callers waiting
                refusal = (
                    error if isinstance(error, Exception) else BrokerUnavailable(f"sending was cut off by {error!r}")
                )
                if refusal is not error:
                    log.error("%s", refusal, exc_info=error)
                if isinstance(error, BrokerUnavailable):
                    # What came before the broker was found to be away does not wait for another timeout.
                    together, self._waiting = together + self._waiting, []
            for _, sent in together:
                if sent.done():  # its caller was cancelled
                    continue
                if refusal is None:
                    sent.set_result(None)
                else:
                    sent.set_exception(refusal)
