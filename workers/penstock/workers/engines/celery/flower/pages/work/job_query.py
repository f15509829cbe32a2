"""The filters of jobs in the address of a page, and in the body of an act."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from penstock.ledger.queries.jobs import JobFilter
from penstock.ledger.queries.scope import Scope
from penstock.schemas.states import State
from penstock.workers.engines.celery.flower.page import Parameters

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _time(text: Any) -> str | None:
    if text is None or not str(text).strip():
        return None
    read_time(str(text))
    return str(text)


def read_time(text: str) -> datetime:
    """How long ago, such as `1h`, or a time; one without an offset is UTC.

    Raises:
        ValueError: it is neither.
    """
    if (age := _AGE.fullmatch(text.strip().lower())) is not None:
        try:
            return datetime.now(UTC) - timedelta(seconds=float(age[1]) * _UNITS[age[2]])
        except OverflowError:
            pass
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an age, such as 1h or 2d, nor a time, such as 2026-03-01T09:00"
        ) from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


Time = Annotated[str | None, BeforeValidator(_time)]


class JobQuery(Parameters):
    """Filters as `JobFilter` has them; times as ages or ISO 8601, so that an address is good tomorrow, too."""

    state: list[State] = Field(default=[])
    kind: str | None = None
    queue: str | None = None
    tenant: str | None = None
    key: str | None = None
    worker: str | None = None
    engine: str | None = None
    id: str | None = None
    tag: list[str] = Field(default=[])
    field: list[str] = Field(default=[])
    error_class: str | None = None
    error: str | None = None
    enqueued_since: Time = None
    enqueued_until: Time = None
    finished_since: Time = None
    finished_until: Time = None

    def job_filter(self, scope: Scope) -> JobFilter:
        """Raises ValueError: a field is not searchable, and the like."""
        values: dict[str, Any] = {name: getattr(self, name) for name in TEXTS}
        values |= {name: read_time(value) for name in TIMES if (value := getattr(self, name)) is not None}
        fields = []
        for text in self.field:
            name, equals, value = text.partition("=")
            if not (name and equals):
                raise ValueError(f"field: {text!r} is not NAME=VALUE")
            fields.append((name.strip(), value.strip()))
        return JobFilter(
            states=tuple(self.state),
            tags=tuple(self.tag),
            fields=tuple(fields),
            id_prefix=self.id,
            scope=scope,
            **values,
        )

    @property
    def given(self) -> dict[str, Any]:
        """The filters that are given, as they are written in an address."""
        names = JobQuery.model_fields
        return {name: value for name in names if (value := getattr(self, name)) not in (None, [])}


TEXTS = ("kind", "queue", "tenant", "key", "worker", "engine", "error_class", "error")
TIMES = ("enqueued_since", "enqueued_until", "finished_since", "finished_until")
