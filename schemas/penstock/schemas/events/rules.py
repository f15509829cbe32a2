"""Rules that turn events into jobs: `[events.NAME]`."""

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
from penstock.schemas.jobs.kind import Kind, Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.wire.codec import explain


@dataclass(frozen=True, slots=True)
class RuleJob:
    """A job that a rule makes of an event."""

    rule: str
    job: Job


def check_rules(rules: Mapping[str, EventRule], file: Path | None, registry: Registry = default_registry) -> None:
    """Refuse rules that no event could satisfy. All kinds must be imported before.

    Arguments:
        file: the penstock.toml of the rules, to name the line.

    Raises:
        ConfigError: a rule's kind is not known, or does not have its fields; a line for each fault.
    """
    faults: list[tuple[str, str, str]] = []
    for name, rule in rules.items():
        kind = registry.find(rule.kind)
        if kind is None:
            faults.append((name, "kind", f"no imported module defines kind {rule.kind!r}; import it with --import"))
            continue
        fields = {info.alias or field: info for field, info in kind.job.model_fields.items()}
        for part, names in (("fields", rule.fields or {}), ("values", rule.values)):
            for field in names.keys() - fields.keys():
                faults.append((name, part, f"kind {rule.kind} has no field {field!r}"))
        if rule.fields is not None:
            covered = rule.fields | rule.values
            missing = [field for field, info in fields.items() if info.is_required() and field not in covered]
            if missing:
                faults.append((name, "fields", f"kind {rule.kind} needs {', '.join(missing)} too"))
    if faults:
        toml = TomlFile.empty() if file is None else TomlFile.read(file)
        lines = [f"{toml.where(['events', name, part])}: events.{name}.{part}: {why}" for name, part, why in faults]
        raise ConfigError("\n".join(lines))


def jobs_of(event: Event, rules: Mapping[str, EventRule], registry: Registry = default_registry) -> list[RuleJob]:
    """Event → its jobs, one for each rule that fits.

    Raises:
        InvalidEvent: a rule fits, and the picked fields do not make its job.
    """
    return [_job_of(event, name, rule, registry) for name, rule in rules.items() if _fits(event, rule)]


def kinds_of(event: Event, rules: Mapping[str, EventRule], registry: Registry = default_registry) -> list[Kind]:
    """The kinds of the jobs that `jobs_of` makes."""
    return [registry[rule.kind] for rule in rules.values() if _fits(event, rule)]


def _fits(event: Event, rule: EventRule) -> bool:
    return all(
        any(fnmatchcase(text, pattern) for pattern in patterns)
        for text, patterns in (
            (event.type, rule.type),
            (event.source, rule.source),
            (event.subject or "", rule.subject),
        )
    )


def _job_of(event: Event, name: str, rule: EventRule, registry: Registry) -> RuleJob:
    if rule.fields is None:
        if not isinstance(event.data, dict | None):
            raise InvalidEvent(
                "data", f"rule {name} takes its members as fields of {rule.kind}, and it is not an object"
            )
        picked = event.data or {}
    else:
        document = event.document()
        values = {field: find(document, path) for field, path in rule.fields.items()}
        picked = {field: value for field, value in values.items() if value is not None}
    try:
        # As JSON: there a strict field also takes a value without a JSON type of its own, such as a date.
        payload = to_json({**picked, **rule.values}, bytes_mode="base64")
        kind = registry[rule.kind]
        return RuleJob(name, kind.job.model_validate_json(payload))
    except ValidationError as error:
        raise InvalidEvent(
            "data", f"rule {name} cannot make a {rule.kind} of it: {explain(error, kind=kind)}"
        ) from None
