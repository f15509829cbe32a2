"""Liveness, readiness and metrics. For probes: they need no key."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import Response

from penstock.ledger.sql.tables import api_keys
from penstock.producers.gateway.dependencies import Here

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    status: Annotated[Literal["ok"], Field(description="There is no other answer.")] = "ok"


@router.get("/health", operation_id="health")
async def health() -> Health:
    """The process answers; its dependencies are not checked."""
    return Health()


@router.get("/live", operation_id="live")
async def live() -> Health:
    """The same as `/health`."""
    return Health()


@router.get("/ready", operation_id="ready")
async def ready(deps: Here) -> Health:
    """Broker and ledger answer."""
    await deps.producer.ping()
    select = sa.select(api_keys.c.id).limit(1)  # query a table: migrations may not have run
    await asyncio.to_thread(deps.database.read, lambda connection: connection.execute(select).first())
    return Health()


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(deps: Here) -> Response:
    """For Prometheus."""
    return Response(generate_latest(deps.metrics.registry), media_type=CONTENT_TYPE_LATEST)
