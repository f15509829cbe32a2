"""A schedule as the file has it, checked: whether its rule, zone, kind and payload are good."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from penstock.config.errors import ConfigError, UndecodableMessage
from penstock.config.settings import ScheduleSettings, Settings
from penstock.config.toml import TomlFile, find_config
from penstock.schemas.jobs import Job
from penstock.schemas.kinds import registry
from penstock.schemas.wire import Envelope, encode, explain
from penstock.workers.dispatcher.cron import fire_times


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule.

    Attributes:
        rule: its definition as JSON, which tells an old definition in the ledger from this one.
        job: what each firing sends; None if it is wrong.
        error: why it cannot fire, with file and line.
    """

    name: str
    settings: ScheduleSettings
    rule: str
    job: Job | None
    error: str | None

    def envelope(self, now: datetime) -> Envelope:
        """A new job of this schedule's."""
        assert self.job is not None
        expires_in = self.job.kind().expires_in
        return encode(self.job, sent_at=now, expires_at=now + expires_in if expires_in else None)


def read_schedules(settings: Settings) -> list[Schedule]:
    """Every schedule of the file, by name. A wrong one carries its error; the others are not touched by it."""
    return [_read(name, one) for name, one in sorted(settings.schedules.items())]


def _read(name: str, one: ScheduleSettings) -> Schedule:
    rule = json.dumps(one.model_dump(mode="json"), sort_keys=True)
    try:
        fire_times(one.cron, one.timezone, datetime.now(UTC))
        kind = registry[one.kind]
        job = kind.job.model_validate_json(json.dumps(one.payload, default=str))  # TOML has dates of its own
    except ConfigError as error:
        return Schedule(name, one, rule, None, f"{_where(name, 'cron')}: {error}")
    except UndecodableMessage as error:
        hint = "import its module: penstock dispatcher --import …"
        return Schedule(name, one, rule, None, f"{_where(name, 'kind')}: {error.detail}; {hint}")
    except ValidationError as error:
        return Schedule(name, one, rule, None, f"{_where(name, 'payload')}: {explain(error)}")
    return Schedule(name, one, rule, job, None)


def _where(name: str, key: str) -> str:
    """Where it stands, read again only for a wrong one: settings keep no lines."""
    try:
        found = find_config()
        file = TomlFile.read(found) if found else TomlFile.empty()
        return f"{file.where(['schedules', name, key])}: schedule {name!r}"
    except ConfigError:
        return f"schedule {name!r}"
