"""The base of the settings of built-in workers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

MEGABYTE = 1024 * 1024


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def expanded(value: Any) -> Any:
    """The short form `name = "type"` as the long one."""
    if not isinstance(value, dict):
        return value
    return {name: {"type": entry} if isinstance(entry, str) else entry for name, entry in value.items()}
