"""Contracts: the fields and options of kinds, exported and compared.

An *export* is JSON: `{"kinds": {name: …}}`. The comparison of an older and a newer export shows which jobs the newer
code refuses: jobs that are on their way, and jobs that old clients still send.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from penstock.config.errors import ConfigError
from penstock.schemas.contracts.compatibility import Refusal, refusals
from penstock.schemas.jobs.kind import Kind, Registry
from penstock.schemas.jobs.kind import registry as default_registry

Described = Mapping[str, Any]
"""A kind of an export."""

Severity = Literal["breaking", "warning"]


class PermissiveJsonSchema(GenerateJsonSchema):
    """JSON Schema generator that allows any value for types it cannot describe, such as those with a validator."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between two exports that matters to senders or workers.

    Attributes:
        severity: `breaking`: jobs of the older code become dead letters, or do as soon as they are sent. `warning`:
            it is safe after the action that the message names.
        field: its path, such as `lines[].price`; None where the change is about the whole kind.
        rule: its name, such as `field-removed`; the page on contracts lists them.
    """

    severity: Severity
    kind: str
    field: str | None
    rule: str
    message: str


def export(kinds: Iterable[Kind], registry: Registry = default_registry) -> dict[str, Any]:
    return {"kinds": {kind.name: describe(kind, registry) for kind in kinds}}


def describe(kind: Kind, registry: Registry = default_registry) -> dict[str, Any]:
    """A kind as JSON values: the JSON Schema of its fields and what is declared with them."""
    return {
        "description": inspect.cleandoc(kind.job.__doc__ or ""),
        "queue": kind.queue,
        "version": kind.version,
        "upcasters": registry.upcasters(kind),
        "aliases": list(kind.aliases),
        "priority": kind.priority,
        "delivery": kind.delivery,
        "unique": kind.unique.policy if kind.unique is not None else None,
        "unique_by": list(kind.unique_by),
        "timeout_seconds": kind.timeout.total_seconds() if kind.timeout is not None else None,
        "expires_in_seconds": kind.expires_in.total_seconds() if kind.expires_in is not None else None,
        "max_attempts": kind.retry.max_attempts,
        "track": kind.track,
        "sensitive": sorted(kind.sensitive),
        "schema": kind.job.model_json_schema(by_alias=True, schema_generator=PermissiveJsonSchema),
    }


def read_export(text: str, where: str) -> dict[str, Described]:
    """The kinds of an export.

    Arguments:
        where: the text is from, for the error.

    Raises:
        ConfigError: the text is not an export.
    """
    try:
        kinds = json.loads(text)["kinds"]
        for kind in kinds.values():
            if not (isinstance(kind["schema"], dict) and isinstance(kind["version"], int)):
                raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{where}: not an export of kinds; write one with penstock schema export") from None
    return kinds  # type: ignore[no-any-return]


def compare(
    old: Mapping[str, Described], new: Mapping[str, Described], *, accepted: Collection[str] = ()
) -> list[Change]:
    """Changes between the kinds of two exports, in the order of the old names; breaking ones come first.

    Arguments:
        accepted: kinds whose breaking changes are intended; they become warnings.
    """
    named = {alias: name for name, kind in new.items() for alias in kind.get("aliases", ())} | {
        name: name for name in new
    }
    changes: list[Change] = []
    for name, kind in sorted(old.items()):
        if (now := named.get(name)) is None:
            message = f"no kind or alias has this name{_renamed(name, kind, old, new)}"
            changes.append(Change("breaking", name, None, "kind-removed", message))
        else:
            changes += _compare_kind(name, kind, new[now])
        for alias in kind.get("aliases", ()):
            if named.get(alias, "") != now:
                message = f"alias {alias!r} was removed: jobs sent under it cannot be read"
                changes.append(Change("breaking", name, None, "alias-removed", message))
    changes = [_accepted(change) if change.kind in accepted else change for change in changes]
    return sorted(changes, key=lambda change: (change.severity != "breaking", change.kind))


def _accepted(change: Change) -> Change:
    return Change("warning", change.kind, change.field, change.rule, change.message)


def _renamed(name: str, kind: Described, old: Mapping[str, Described], new: Mapping[str, Described]) -> str:
    def fields(kind: Described) -> Any:
        return kind["schema"].get("properties"), kind["schema"].get("required")

    alike = [other for other in new if other not in old and fields(new[other]) == fields(kind)]
    if len(alike) == 1:
        return f"; if it was renamed to {alike[0]!r}, give that aliases=({name!r},)"
    return "; waiting jobs would become dead letters (or its module is not imported here: --import)"


def _compare_kind(name: str, old: Described, new: Described) -> Iterator[Change]:
    was, now = old["version"], new["version"]
    missing = [step for step in range(was, now) if step not in new.get("upcasters", ())]
    if now < was:
        message = f"version {now}, was {was}: waiting jobs are newer than the code"
        yield Change("breaking", name, None, "version-lowered", message)
    for step in missing:
        message = f"version {now} has no upcaster from version {step}: waiting jobs cannot be read"
        yield Change("breaking", name, None, "upcaster-missing", message)
    for step in sorted({*old.get("upcasters", ())} - {*new.get("upcasters", ())}):
        if step < min(was, now):
            message = f"the upcaster from version {step} was removed: no job of that version may still wait"
            yield Change("warning", name, None, "upcaster-removed", message)
    refused = refusals(old["schema"], new["schema"])
    if now == was:
        for problem in refused:
            advice = f"; keep it, or make it version {now + 1} with an upcaster from version {now}"
            yield Change("breaking", name, problem.path or None, problem.rule, problem.reason + advice)
    elif refused and now > was:
        message = f"unmodified clients send no version, so theirs counts as {now}: change {_paths(refused)} there first"
        yield Change("warning", name, None, "stock-clients", message)
    yield from _compare_fields(name, old, new)
    yield from _compare_options(name, old, new)


def _compare_fields(name: str, old: Described, new: Described) -> Iterator[Change]:
    before, after = list(old["schema"].get("properties", {})), list(new["schema"].get("properties", {}))
    if set(before) <= set(after) and after[: len(before)] != before:
        message = "the order of the fields changed, which positional arguments of unmodified clients follow"
        yield Change("warning", name, None, "fields-reordered", message)
    ignoring = old["version"] == new["version"] and new["schema"].get("additionalProperties", True) is not False
    for field in before:
        if ignoring and field not in after:
            yield Change("warning", name, field, "field-ignored", "is removed: its values are ignored from now on")
    for field in sorted(({*old.get("sensitive", ())} - {*new.get("sensitive", ())}) & set(after)):
        yield Change("warning", name, field, "sensitive-removed", "is no longer sensitive: its values become visible")
    if old["version"] != new["version"]:
        message = f"deploy workers before producers: older workers do not read version {new['version']}"
        yield Change("warning", name, None, "workers-first", message)
    elif unread := refusals(new["schema"], old["schema"]):
        message = f"deploy workers before producers: older workers refuse new values of {_paths(unread)}"
        yield Change("warning", name, None, "workers-first", message)


def _compare_options(name: str, old: Described, new: Described) -> Iterator[Change]:
    for option, advice in (
        ("queue", "keep a worker on the old queue until it is empty"),
        ("delivery", "waiting jobs run with the new delivery"),
        ("unique", "waiting jobs hold their keys under the old policy"),
        ("unique_by", "the keys of waiting jobs differ from those of new jobs"),
    ):
        was, now = old.get(option), new.get(option)
        if option in old and was != now:
            message = f"{option} is {_text(now)}, was {_text(was)}: {advice}"
            yield Change("warning", name, None, f"{option.replace('_', '-')}-changed", message)


def _paths(problems: Iterable[Refusal]) -> str:
    return ", ".join(dict.fromkeys(problem.path or "the payload" for problem in problems))


def _text(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value or "none")
