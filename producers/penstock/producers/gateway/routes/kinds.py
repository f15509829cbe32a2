"""Kinds that can be sent: `GET /v1/kinds`."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from penstock.producers.gateway.dependencies import Authenticated
from penstock.schemas.contracts.export import describe
from penstock.schemas.jobs.kind import Kind, registry

router = APIRouter(tags=["kinds"])


class KindView(BaseModel):
    """A kind, as `penstock schema export` describes it."""

    model_config = ConfigDict(extra="allow")

    kind: str
    version: int
    queue: str
    fields: Annotated[dict[str, Any], Field(alias="schema", description="The JSON Schema of its fields.")]


class KindList(BaseModel):
    kinds: list[KindView]


@router.get("/v1/kinds", operation_id="listKinds")
async def list_kinds(caller: Authenticated) -> KindList:
    """The kinds that this caller may send, with the JSON Schemas of their fields."""
    return KindList(kinds=[_view(kind) for kind in registry if caller.is_allowed(kind)])


@router.get("/v1/kinds/{kind}", operation_id="getKind")
async def get_kind(kind: Annotated[str, Path(max_length=127)], caller: Authenticated) -> KindView:
    """A kind, also by a former name."""
    defined = caller.find_kind(kind)
    caller.check_queue(defined)
    return _view(defined)


@cache  # a schema takes milliseconds to make
def _view(kind: Kind) -> KindView:
    return KindView(kind=kind.name, **describe(kind))
