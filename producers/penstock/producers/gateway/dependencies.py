"""Dependencies of the routes: what all of them share (`Here`), and the caller (`Authenticated`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from penstock.config.process.metrics import add_process_metrics
from penstock.config.settings import Settings
from penstock.ledger.queries.fleet_metrics import FleetMetrics
from penstock.ledger.sql.database import Database
from penstock.producers.enqueue.async_producer import AsyncProducer
from penstock.producers.explain.queue_position import open_positions
from penstock.producers.gateway.auth.callers import Caller, Callers
from penstock.producers.gateway.auth.job_ids import JobIds
from penstock.producers.gateway.auth.jwt import JwtVerifier
from penstock.producers.gateway.auth.rate_limit import RateLimiter
from penstock.producers.gateway.auth.verbs import demanded
from penstock.producers.gateway.metrics import Metrics
from penstock.producers.gateway.problems import Problem
from penstock.producers.gateway.requests.idempotency import IdempotencyKeys
from penstock.producers.limits import open_store
from penstock.producers.senders import open_backlogs
from penstock.producers.senders.known_queues import KEPT_SECONDS, KnownQueues
from penstock.producers.tokens import read_token
from penstock.schemas import __version__
from penstock.schemas.verbs import Verb

log = logging.getLogger("penstock.gateway")


class Deps:
    """Open for as long as the app runs.

    Attributes:
        database: the ledger's; its calls block, so they run in threads.
        secret: signs ids and tokens.
        positions, limits, queues: asked to explain a job; they block, too.
        closing: set when the gateway is to stop, which ends the streams.
        streams: number of jobs that each caller follows now.
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
        self.queues = KnownQueues(settings, self.database, kept_seconds=KEPT_SECONDS)
        self.metrics = Metrics()
        self._fleet_metrics = FleetMetrics(settings, self.database, open_backlogs(settings))
        self.metrics.registry.register(self._fleet_metrics)
        add_process_metrics(self.metrics.registry, version=__version__, role="gateway")
        self._fleet_metrics.start()
        self.closing = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.streams: Counter[str] = Counter()

    def end_streams(self) -> None:
        """End all streams; from any thread or a signal handler, also after the gateway has stopped."""
        with suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self.closing.set)

    async def close(self) -> None:
        self.closing.set()
        self.callers.close()
        await self.producer.close()
        self.positions.close()
        if self.limits is not None:
            self.limits.close()
        await asyncio.to_thread(self._fleet_metrics.close)
        self.database.close()

    def check_token(self, token: str, job_id: str, verb: Verb) -> Caller:
        """The holder of a web backend's token, which must be for this job and carry this verb.

        Raises:
            Problem: (403) it is for another job, or does not carry the verb. InvalidToken.
        """
        contents = read_token(token, secret=self.secret)
        if contents.job_id != job_id:
            raise Problem(403, "token-not-allowed", "this token is for another job")
        if verb not in contents.verbs:
            raise Problem(403, "token-not-allowed", f"this token is not for this; it may {', '.join(contents.verbs)}")
        expires_at = datetime.fromtimestamp(contents.expires_at, UTC)
        return Caller(f"token:{job_id}", f"token of job {job_id}", expires_at=expires_at, verbs=contents.verbs)

    def count(self, caller: Caller, weight: int = 1) -> None:
        """Count a request against the caller's rate. Raises Problem (429) if it is over its limit."""
        per_second = caller.requests_per_second or self.settings.gateway.requests_per_second
        self.rate_limiter.acquire(caller.id, per_second, weight)


async def services(connection: HTTPConnection) -> Deps:
    """The shared dependencies. A coroutine, because FastAPI would run a function in a thread."""
    return deps_of(connection)


def deps_of(connection: HTTPConnection) -> Deps:
    """`services` for what FastAPI does not call."""
    deps: Deps = connection.app.state.deps
    return deps


async def authenticated(connection: HTTPConnection) -> Caller:
    """The caller, whose request is counted.

    Raises:
        Problem: (401) the credential is not valid; (429) it is over its rate; (403) it does not have the route's verb.
    """
    deps = deps_of(connection)
    caller = await deps.callers.authenticate(connection.headers.get("authorization"))
    deps.count(caller)
    caller.demand(demanded(connection))
    return caller


Here = Annotated[Deps, Depends(services)]
Authenticated = Annotated[Caller, Depends(authenticated)]
