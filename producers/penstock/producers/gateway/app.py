"""The gateway as an ASGI app."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from penstock.config.settings import Settings, load_settings
from penstock.producers.gateway import openapi, problems
from penstock.producers.gateway.dependencies import Authenticated, Deps
from penstock.producers.gateway.metrics import RequestTimer
from penstock.producers.gateway.requests.bodies import BodyLimits
from penstock.producers.gateway.routes import (
    dead_letters,
    events,
    explain,
    health,
    jobs,
    kinds,
    schedules,
    streams,
    submit,
    webhooks,
    workflows,
)
from penstock.schemas.events import rules
from penstock.schemas.jobs.kind import registry

ROUTERS = (
    submit.router,
    jobs.router,
    explain.router,
    dead_letters.router,
    streams.router,
    kinds.router,
    schedules.router,
    workflows.router,
    events.router,
    webhooks.router,
    health.router,
)
BUILTIN = tuple(f"penstock.schemas.builtin.{name}" for name in ("emails", "reports", "syncs", "uploads"))


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway, for the kinds that are imported by now and the built-in ones.

    Arguments:
        settings: None: those of `penstock.toml` and the environment.

    Raises:
        ConfigError: a setting is wrong, such as a rule for events whose kind is not imported, or the ledger's driver is
            missing.
    """
    settings = settings or load_settings()
    for module in BUILTIN:
        importlib.import_module(module)
    rules.check_rules(settings.events, settings.file)
    webhooks.check_secrets(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.deps = Deps(settings)
        yield
        await app.state.deps.close()

    # FastAPI's own pages load third-party scripts, and its document is open to all.
    app = FastAPI(
        title="Penstock",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.routes.append(submit.SUBMIT)
    for router in ROUTERS:
        app.include_router(router)

    text = lru_cache(16)(lambda kinds: openapi.document_text(app, kinds))

    @app.get("/openapi.json", include_in_schema=False)
    async def describe(caller: Authenticated) -> Response:
        return Response(text(tuple(filter(caller.is_allowed, registry))), media_type="application/json")

    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    problems.add_handlers(app)
    limits = settings.gateway
    app.state.max_connections = limits.max_connections
    app.add_middleware(BodyLimits, max_bytes=limits.max_body_bytes, timeout_seconds=limits.body_timeout_seconds)
    if limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "traceparent"],
            expose_headers=["Location", "Retry-After", "Idempotency-Replayed"],
        )
    app.add_middleware(RequestTimer)
    return app
