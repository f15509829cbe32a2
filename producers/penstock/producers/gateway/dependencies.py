"""What all routes of a gateway share, and how they get at it: `services` and `authenticated` are dependencies."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.enqueue.producer import AsyncProducer
from penstock.producers.explain.queue_position import open_positions
from penstock.producers.gateway.auth.callers import Caller, Callers
from penstock.producers.gateway.auth.job_ids import JobIds
from penstock.producers.gateway.auth.jwt import JwtVerifier
from penstock.producers.gateway.auth.rate_limit import RateLimiter
from penstock.producers.gateway.metrics import Metrics, OutboxBacklogs
from penstock.producers.gateway.requests.idempotency import IdempotencyKeys
from penstock.producers.limits import open_store

log = logging.getLogger("penstock.gateway")


class Deps:
    """Open for as long as the app runs.

    Attributes:
        database: the ledger's; its calls block, so they belong into threads.
        secret: signs ids and tokens.
        closing: set when the gateway is to stop; who streams ends then.
        streams: jobs that clients follow now.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.secret = settings.token_secret or secrets.token_urlsafe(32)
        if settings.token_secret is None:
            log.warning("no token_secret is set: tokens of web backends are refused, and of several gateways each own")
        self.producer = AsyncProducer.from_settings(settings)
        self.producer.gather()
        self.database = Database(settings.database_url)
        jwt = settings.gateway.jwt
        self.callers = Callers(self.database, None if jwt is None else JwtVerifier(jwt))
        self.job_ids = JobIds(self.secret)
        self.rate_limiter = RateLimiter()
        self.idempotency_keys = IdempotencyKeys(self.database)
        self.positions = open_positions(
            settings.broker_url, prefix=settings.prefix, timeout_seconds=settings.broker_timeout_seconds
        )
        self.limits = open_store(settings)
        self.metrics = Metrics()
        self.backlogs = OutboxBacklogs(self.database, settings.outbox_urls)
        self.metrics.registry.register(self.backlogs)
        self.closing = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.streams = 0

    def end_streams(self) -> None:
        """From any thread, or a signal's handler; also when all has ended."""
        with suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self.closing.set)

    async def close(self) -> None:
        self.closing.set()
        await self.producer.close()
        self.positions.close()
        if self.limits is not None:
            self.limits.close()
        self.backlogs.close()
        self.database.close()

    def count(self, caller: Caller, weight: int = 1) -> None:
        """Raises Problem (429) if the caller asks for more than it may."""
        per_second = caller.requests_per_second or self.settings.gateway.requests_per_second
        if per_second is not None:
            self.rate_limiter.acquire(caller.id, per_second, weight)


async def services(connection: HTTPConnection) -> Deps:
    """A coroutine, as FastAPI would take a thread for a function."""
    found: Deps = connection.app.state.deps
    return found


async def authenticated(connection: HTTPConnection) -> Caller:
    """Who calls, counted.

    Raises:
        Problem: (401) nobody we know; (429) it asks for too much.
    """
    deps = await services(connection)
    caller = await deps.callers.authenticate(connection.headers.get("authorization"))
    deps.count(caller)
    return caller


Here = Annotated[Deps, Depends(services)]
Authenticated = Annotated[Caller, Depends(authenticated)]
