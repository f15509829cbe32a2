"""`[alerts.NAME]`: what people are notified of, and how."""

from __future__ import annotations

from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator, validate_email
from pydantic_core import PydanticCustomError

from penstock.config.sections.events import OneOrMany
from penstock.config.sections.schedules import Duration, read_duration
from penstock.config.suggestions import did_you_mean

When = Literal[
    "oldest_waiting",
    "depth",
    "dead_letters",
    "error_rate",
    "silent_queue",
    "no_dispatcher",
    "schedule_late",
    "schedule_missed",
    "outbox_lag",
]

_TIMES = ("oldest_waiting", "schedule_late", "outbox_lag")
"""Their `above` is a duration."""
WINDOWS: dict[str, timedelta] = {
    "dead_letters": timedelta(minutes=15),
    "error_rate": timedelta(minutes=15),
    "schedule_missed": timedelta(days=1),
}
"""Those that look back over a window, which is their `over` → its default. `over` of the others: how long it holds."""
_HELD = {"silent_queue": timedelta(minutes=1), "no_dispatcher": timedelta(minutes=1)}
"""Defaults of `over` of the others, where it is not zero: a restart is not worth an alert."""
_LEAST = {"dead_letters": 0.0, "schedule_missed": 0.0, "schedule_late": 60.0}
"""Defaults of `above`."""
_PATTERNS = {
    "queue": ("oldest_waiting", "depth", "dead_letters", "error_rate", "silent_queue"),
    "kind": ("dead_letters", "error_rate"),
    "schedule": ("schedule_late", "schedule_missed"),
    "outbox": ("outbox_lag",),
}
"""Pattern → the conditions that it restricts."""
_LONGEST = timedelta(days=7)


class AlertSettings(BaseModel):
    """An alert: a condition, and whom to notify when it begins to hold and when it has ended.

    Each queue, kind, schedule or outbox that the condition is about begins and ends for itself. Patterns are as in
    `[events.NAME]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: When
    above: float | None = None
    """The most that is well: jobs, dead letters, missed times, a share of attempts (0.2), or a duration (`"10m"`)."""
    over: Annotated[Duration, Field(ge=timedelta(), le=_LONGEST)] | None = None
    """How long the condition must hold before the alert begins; of dead_letters, error_rate and schedule_missed the
    time that is looked back at."""
    queue: OneOrMany = Field(default=("*",), min_length=1)
    kind: OneOrMany = Field(default=("*",), min_length=1)
    schedule: OneOrMany = Field(default=("*",), min_length=1)
    outbox: OneOrMany = Field(default=("*",), min_length=1)
    """Of the URL of its database, without user and password."""
    notify: OneOrMany = ()
    """Names of `[hooks.NAME]`, and addresses of people. Empty: it is only logged and listed."""

    @model_validator(mode="before")
    @classmethod
    def _read_above(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("above"), str):
            if values.get("when") not in _TIMES:
                raise ValueError(f"above of {values.get('when')} is a number, not {values['above']!r}")
            above = read_duration(values["above"])
            return values | {"above": above.total_seconds() if isinstance(above, timedelta) else above}
        return values

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        for name, conditions in _PATTERNS.items():
            if name in self.model_fields_set and self.when not in conditions:
                raise ValueError(f"{name} goes with {', '.join(conditions)}, not with {self.when}")
        if self.when in ("silent_queue", "no_dispatcher"):
            if self.above is not None:
                raise ValueError(f"above does not go with {self.when}")
        elif self.above is None and self.when not in _LEAST:
            example = '"10m"' if self.when in _TIMES else "0.2" if self.when == "error_rate" else "1000"
            raise ValueError(f"{self.when} needs above, such as above = {example}")
        elif self.above is not None and not 0 <= self.above < (1 if self.when == "error_rate" else float("inf")):
            share = ", and below 1: it is a share of the attempts" if self.when == "error_rate" else ""
            raise ValueError(f"above must be at least 0{share}")
        if self.when in WINDOWS and self.over is not None and self.over < timedelta(minutes=1):
            raise ValueError(f"over of {self.when} is the time that it looks back at, from 1m up")
        return self

    @property
    def most(self) -> float:
        """`above` or its default; in seconds where it is a duration."""
        return _LEAST.get(self.when, 0.0) if self.above is None else self.above

    @property
    def window(self) -> timedelta:
        """The time that it looks back at; zero for conditions that have none."""
        return (self.over or WINDOWS[self.when]) if self.when in WINDOWS else timedelta()

    @property
    def hold(self) -> timedelta:
        """How long the condition must hold before the alert begins."""
        if self.when in WINDOWS:
            return timedelta()
        return _HELD.get(self.when, timedelta()) if self.over is None else self.over

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(name for name in self.notify if "@" not in name)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(name for name in self.notify if "@" in name)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether one of the patterns is for this name; case-sensitive."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _can_be_notified(alert: AlertSettings, info: ValidationInfo) -> AlertSettings:
    """Check the names and addresses of `notify`; `info` has the settings that were read before."""
    hooks = info.data.get("hooks")
    for address in alert.addresses:
        try:
            validate_email(address)
        except PydanticCustomError as error:
            raise ValueError(f"notify: {address!r} is not an e-mail address: {error.context}") from None
    if hooks is None:  # they are wrong themselves
        return alert
    for name in alert.hooks:
        hook = hooks.get(name)
        if hook is None:
            raise ValueError(f"notify: there is no [hooks.{name}], and an address has an @{did_you_mean(name, hooks)}")
        if hook.url is None:
            raise ValueError(f"notify: [hooks.{name}] has no url")
        if not hook.is_for(None):
            raise ValueError(f"notify: [hooks.{name}] is for the jobs of its tenants alone; make another one")
    return alert


AlertEntry = Annotated[AlertSettings, AfterValidator(_can_be_notified)]
"""An alert whose `notify` has been compared with the hooks of the settings."""
