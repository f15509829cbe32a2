"""Turning events into jobs, as `[events.NAME]` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import to_json

from penstock.config.errors import ConfigError, InvalidEvent
from penstock.config.sections.events import EventRule
from penstock.config.toml import TomlFile
from penstock.schemas.builtin.paths import find
from penstock.schemas.events.cloudevents import Event
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.wire.codec import explain


@dataclass(frozen=True, slots=True)
class Made:
    """A job that a rule made of an event."""

    rule: str
    job: Job


def check(rules: Mapping[str, EventRule], file: Path | None, registry: Registry = default_registry) -> None:
    """Refuse rules that no event could satisfy. Call it when all kinds are imported.

    Arguments:
        file: the penstock.toml they are from, to name the line.

    Raises:
        ConfigError: a rule's kind is not known, or does not have its fields; a line for each.
    """
    faults: list[tuple[str, str, str]] = []
    for name, rule in rules.items():
        kind = registry.find(rule.kind)
        if kind is None:
            faults.append((name, "kind", f"no imported module defines kind {rule.kind!r}; import it with --import"))
            continue
        fields = {info.alias or field: info for field, info in kind.job.model_fields.items()}
        for part, given in (("fields", rule.fields or {}), ("values", rule.values)):
            for field in given.keys() - fields.keys():
                faults.append((name, part, f"kind {rule.kind} has no field {field!r}"))
        if rule.fields is not None:
            missing = [
                one for one, info in fields.items() if info.is_required() and one not in rule.fields | rule.values
            ]
            if missing:
                faults.append((name, "fields", f"kind {rule.kind} needs {', '.join(missing)} too"))
    if faults:
        read = TomlFile.empty() if file is None else TomlFile.read(file)
        lines = [f"{read.where(['events', name, part])}: events.{name}.{part}: {why}" for name, part, why in faults]
        raise ConfigError("\n".join(lines))


def jobs_of(event: Event, rules: Mapping[str, EventRule], registry: Registry = default_registry) -> list[Made]:
    """The jobs that an event becomes; none where no rule fits.

    Raises:
        InvalidEvent: a rule fits, and what it picks does not make its job.
    """
    return [_make(event, name, rule, registry) for name, rule in rules.items() if _fits(event, rule)]


def _fits(event: Event, rule: EventRule) -> bool:
    return all(
        any(fnmatchcase(text, pattern) for pattern in patterns)
        for text, patterns in (
            (event.type, rule.type),
            (event.source, rule.source),
            (event.subject or "", rule.subject),
        )
    )


def _make(event: Event, name: str, rule: EventRule, registry: Registry) -> Made:
    if rule.fields is None:
        if not isinstance(event.data, dict | None):
            raise InvalidEvent("data", f"rule {name} takes its members as fields of {rule.kind}, and it is no object")
        picked = event.data or {}
    else:
        document = event.document()
        found = {field: find(document, path) for field, path in rule.fields.items()}
        picked = {field: value for field, value in found.items() if value is not None}
    try:
        # As JSON, in which a strict field takes what has no type of its own there, such as a date.
        payload = to_json({**picked, **rule.values}, bytes_mode="base64")
        return Made(name, registry[rule.kind].job.model_validate_json(payload))
    except ValidationError as error:
        raise InvalidEvent("data", f"rule {name} cannot make a {rule.kind} of it: {explain(error)}") from None
