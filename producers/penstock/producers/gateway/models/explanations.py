"""Explanations as clients see them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from penstock.schemas.states import State


class ExplanationView(BaseModel):
    """Why a job isn't running, or what became of it."""

    id: str
    state: Annotated[State | None, Field(description="None: the ledger has no record of it.")]
    because: Annotated[str, Field(description="One sentence.")]
    facts: Annotated[dict[str, Any], Field(description="The data behind that sentence.")]
    advice: Annotated[str | None, Field(description="What to do, on the command line; None: nothing.")]
