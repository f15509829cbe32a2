"""The stream of ticks by which pages refresh themselves."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from penstock.workers.engines.celery.flower.page import Handler

TICK_SECONDS = 2.0
MOST_STREAMS = 500
_LONGEST_SECONDS = 600.0
"""After this a stream ends and the browser opens another one, so that a login that was taken back ends as well."""


class Live(Handler):
    """`GET /api/penstock/live`: Server-Sent Events, an event `tick` every two seconds.

    A tick says that it is time to look again. The page asks its own address then, with its own filters, so a tick
    costs the ledger nothing.
    """

    path = r"/live"
    streams = 0

    async def get(self) -> None:
        if Live.streams >= MOST_STREAMS:
            self.set_header("Retry-After", "30")
            raise HTTPError(503, f"{MOST_STREAMS} pages follow already")
        self.set_header("Content-Type", "text/event-stream; charset=UTF-8")
        self.set_header("X-Accel-Buffering", "no")
        Live.streams += 1
        end = time.monotonic() + _LONGEST_SECONDS
        try:
            self.write(f"retry: {round(TICK_SECONDS * 1000)}\n\n")
            while time.monotonic() < end:
                self.write(f"event: tick\ndata: {json.dumps({'at': datetime.now(UTC).isoformat()})}\n\n")
                await self.flush()
                await asyncio.sleep(TICK_SECONDS)
        except StreamClosedError:
            pass
        finally:
            Live.streams -= 1
