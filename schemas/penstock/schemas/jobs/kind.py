"""Kinds: the stable names of jobs, their declarations, and the registry that finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from penstock.config.errors import DuplicateKind, KindError, UndecodableMessage
from penstock.schemas.jobs.limits import Limit
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.scrubbing import Scrub, Scrubber
from penstock.schemas.jobs.sensitive import (
    HIDDEN,
    Shapes,
    hide,
    holds,
    sensitive_values,
    shapes_of_model,
)
from penstock.schemas.jobs.unique_policy import Unique

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DeliveryPromise = Literal["at_least_once", "once", "at_most_once"]
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""In the order they are served. Each is a lane of its own in a queue."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,126}")
"""What a kind or queue may be called: it becomes part of keys and queue names on every broker."""

Payload = dict[str, Any]
Upcaster = Callable[[Payload], Payload]

DISPATCHER_QUEUE = "dispatcher"
"""The queue the dispatcher consumes: jobs whose time has not come."""
DEAD_QUEUE = "dead"
"""The queue for messages that RabbitMQ gave up on."""


def reserved_queue(name: str) -> str | None:
    """Reason why a queue cannot have this name, or None. On RabbitMQ each lane is a queue of its own."""
    if name == DISPATCHER_QUEUE:
        return "is the dispatcher's own"
    if name == DEAD_QUEUE:
        return "holds the messages that the broker gave up on"
    if "." in name and name.rpartition(".")[2] in PRIORITIES:
        return "ends like a priority's lane"
    return None


def checked_queue(name: Any) -> str:
    """Name of a queue, as it is.

    Raises:
        ValueError: no queue can have it.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"queue {name!r} must be letters, digits, '_', '.', ':' or '-', at most 127")
    if reserved := reserved_queue(name):
        raise ValueError(f"queue {name!r} {reserved}; choose another name")
    return name


@dataclass(frozen=True)
class Kind:
    """Declaration of a job class, from its keywords: `class SendInvoice(Job, kind=…, queue=…)`."""

    name: str
    job: type[Any]
    """The `Job` class. Its type is not named here, since `job` imports this module."""
    queue: str = "default"
    version: int = 1
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: timedelta | None = None
    """Longest run of an attempt; None: without bound."""
    soft_timeout: timedelta | None = None
    """When a handler is asked to end in good order; None: not before the timeout."""
    delivery: DeliveryPromise = "at_least_once"
    track: bool = True
    """False keeps only failures in the ledger."""
    unique_by: tuple[str, ...] = ()
    """Fields whose values make a job's key when none is given."""
    unique: Unique | None = None
    """Policy for a job whose key another job holds; None: a key only serves to find jobs."""
    aliases: tuple[str, ...] = ()
    """Former names, still understood."""
    priority: Priority = "normal"
    expires_in: timedelta | None = None
    """Age past which a waiting job is discarded instead of run."""
    max_crashes: int | None = None
    """Overrides the setting of that name."""
    limits: tuple[Limit, ...] = ()
    """Limits on all jobs of the kind together, or on those of one tenant, key and so on."""
    search: tuple[str, ...] = ()
    """Fields by whose values people find jobs in lists."""

    def __hash__(self) -> int:
        return hash(self.name)

    @cached_property
    def shapes(self) -> Shapes:
        """Where its payload has sensitive parts; empty if it has none."""
        shapes = shapes_of_model(self.job)
        return shapes if holds(shapes) else []

    @cached_property
    def sensitive(self) -> frozenset[str]:
        """Fields that are marked `Sensitive`, or have a part that is."""
        fields = (self.shapes[0].fields or {}) if self.shapes else {}
        return frozenset(name for name in self.job.model_fields if holds(fields.get(name, ())))

    def searchable(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The values of its searchable fields in a payload as it travels; those that are there."""
        fields = self.job.model_fields
        names = {name: fields[name].serialization_alias or name for name in self.search if name not in self.sensitive}
        return {name: payload[wire_name] for name, wire_name in names.items() if wire_name in payload}

    @cached_property
    def body(self) -> TypeAdapter[tuple[list[Any], Any, dict[str, Any] | None]]:
        """Validates a whole Celery body, `[args, kwargs, embed]`, from JSON in one pass."""
        from pydantic import ConfigDict, TypeAdapter

        body = tuple[list[Any], self.job, dict[str, Any] | None]  # type: ignore[name-defined]
        return TypeAdapter(body, config=ConfigDict(hide_input_in_errors=bool(self.shapes)))

    @cached_property
    def doubts(self) -> int:
        """Which payloads to check before they are sent; see `doubts_of`."""
        from penstock.schemas.jobs.doubts import doubts_of

        return doubts_of(self.job.__pydantic_core_schema__)

    def redact(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload with sensitive values replaced by `***`, and those of fields that the kind does not know, if it
        has sensitive ones."""
        return hide(payload, self.shapes) if self.shapes else dict(payload)

    def redact_stored(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as `redact` returns it. If the kind has sensitive fields and cannot read it, every value is
        replaced, since a sensitive one may be in any field."""
        if self.shapes:
            try:
                self.job.model_validate_json(json.dumps(payload))
            except Exception:  # whatever a validator raises
                return dict.fromkeys(payload, HIDDEN)
        return self.redact(payload)

    def scrubber(self, payload: Any) -> Scrubber | None:
        """Replaces the sensitive values of a payload in texts; None: the kind has none."""
        return Scrubber(sensitive_values(payload, self.shapes)) if self.shapes else None

    def scrub_of_job(self, job: Any) -> Scrub:
        """Replaces the values of a job's sensitive fields in texts; without such fields it costs nothing."""
        return self.scrub_of_payload(lambda: job.model_dump(mode="json", warnings=False))

    def scrub_of_payload(self, payload: Callable[[], Any]) -> Scrub:
        """Replaces the sensitive values of a payload in texts. It is read only if the kind has any."""
        if not self.shapes:
            return str
        try:
            return self.scrubber(payload()) or str
        except Exception:  # whatever a serializer raises
            return lambda text: HIDDEN

    def hide_in(self, result: Any, payload: Any) -> Any:
        """The JSON value with the sensitive values of a payload replaced by `***` in its texts."""
        scrub = self.scrubber(payload)
        return result if scrub is None else self._hidden(result, scrub)

    def _hidden(self, value: Any, scrub: Scrubber) -> Any:
        if isinstance(value, dict):
            return {scrub(name): self._hidden(part, scrub) for name, part in value.items()}
        if isinstance(value, list):
            return [self._hidden(part, scrub) for part in value]
        if isinstance(value, str):
            return scrub(value)
        text = json.dumps(value)
        return value if (scrubbed := scrub(text)) == text else scrubbed


class DeclaresKind(Protocol):
    """A `Job` class, as far as kinds are concerned."""

    @classmethod
    def kind(cls) -> Kind: ...


class Registry:
    """Kinds by name and alias, and the upcasters between their versions."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}
        self._upcasters: dict[tuple[str, int], Upcaster] = {}
        self._queues: set[str] = set()
        self._overrides: dict[str, Callable[[Kind], Kind]] = {}
        self._declared: dict[str, Kind] = {}

    def add(self, kind: Kind) -> None:
        """Register a kind under its name and aliases.

        Raises:
            DuplicateKind: another class has one of them. The same class defined again (a reload) replaces itself.
        """
        for name in (kind.name, *kind.aliases):
            other = self._kinds.get(name)
            if other is not None and _path(other.job) != _path(kind.job):
                raise DuplicateKind(
                    f"kind {name!r} of {_path(kind.job)} is already taken by {_path(other.job)}; "
                    "give one of them another kind"
                )
        self._declared.pop(kind.name, None)
        if kind.name in self._overrides:
            self._apply(self._overrides[kind.name], kind)
        for name in (kind.name, *kind.aliases):
            self._kinds[name] = kind

    def override(self, name: str, change: Callable[[Kind], Kind]) -> None:
        """Give a kind the options that a function returns for the declared ones, now or when its class is defined. The
        kind stays the same object, so handlers and classes that hold it have them, too.

        Raises:
            ConfigError: from the function, and the kind stays as it was.
        """
        kind = self._kinds.get(name)
        if kind is not None:
            self._apply(change, kind)
        self._overrides[name if kind is None else kind.name] = change

    def _apply(self, change: Callable[[Kind], Kind], kind: Kind) -> None:
        declared = self._declared.get(kind.name) or replace(kind)
        changed = change(declared)
        self._declared[kind.name] = declared
        for option in fields(Kind):
            object.__setattr__(kind, option.name, getattr(changed, option.name))

    def discard(self, kind: Kind) -> None:
        """Forget a kind, its upcasters and its overrides; for tests."""
        self._overrides.pop(kind.name, None)
        self._declared.pop(kind.name, None)
        for name in (kind.name, *kind.aliases):
            if self._kinds.get(name) is kind:
                del self._kinds[name]
        for key in [key for key in self._upcasters if key[0] == kind.name]:
            del self._upcasters[key]

    def find(self, name: str) -> Kind | None:
        """The kind with this name or alias."""
        return self._kinds.get(name)

    def redact(self, name: str | None, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as its kind's `redact_stored` returns it; of an unknown kind every value is replaced, since only
        the kind says which are sensitive."""
        kind = self.find(name or "")
        return dict.fromkeys(payload, HIDDEN) if kind is None else kind.redact_stored(payload)

    def hide_in(self, name: str | None, result: Any, payload: Any) -> Any:
        """A result as its kind's `hide_in` returns it; of an unknown kind all of it is replaced."""
        kind = self.find(name or "")
        return HIDDEN if kind is None else kind.hide_in(result, payload)

    def __getitem__(self, name: str) -> Kind:
        """Raises UndecodableMessage (`unknown_kind`) where there is none."""
        try:
            return self._kinds[name]
        except KeyError:
            detail = f"no imported module defines kind {name!r}"
            raise UndecodableMessage("unknown_kind", detail, newer=True) from None

    def __iter__(self) -> Iterator[Kind]:
        """Every kind once, by name."""
        return iter(sorted({kind.name: kind for kind in self._kinds.values()}.values(), key=lambda kind: kind.name))

    def queues(self) -> set[str]:
        """The queues that kinds name, and those that were added."""
        return self._queues | {kind.queue for kind in self._kinds.values()}

    def add_queue(self, name: str) -> None:
        """Make a queue known that jobs may go to, though no kind names it, as an adopted application may declare one.

        Raises:
            ValueError: no queue can have this name.
        """
        self._queues.add(checked_queue(name))

    def add_upcaster(self, kind: Kind, from_version: int, upcaster: Upcaster) -> None:
        if not 1 <= from_version < kind.version:
            raise KindError(
                f"upcaster of {kind.name!r}: from_version={from_version} must lie between 1 and "
                f"{kind.version - 1}, below the kind's own version {kind.version}"
            )
        if (kind.name, from_version) in self._upcasters:
            raise KindError(f"kind {kind.name!r} has two upcasters from version {from_version}")
        self._upcasters[kind.name, from_version] = upcaster

    def upcasters(self, kind: Kind) -> list[int]:
        """Versions that have an upcaster, in order."""
        return sorted(version for name, version in self._upcasters if name == kind.name)

    def upcast(self, kind: Kind, payload: Payload, version: int) -> Payload:
        """Old payload → payload of the kind's version, one upcaster after the other.

        Raises:
            UndecodableMessage: (`unknown_version`) the version is newer than this code, or a step is missing or fails.
        """
        if version > kind.version:
            raise UndecodableMessage(
                "unknown_version",
                f"{kind.name} version {version} is newer than version {kind.version} known here; deploy this worker",
                newer=True,
            )
        for step in range(version, kind.version):
            upcaster = self._upcasters.get((kind.name, step))
            if upcaster is None:
                raise UndecodableMessage("unknown_version", f"{kind.name} has no upcaster from version {step}")
            try:
                payload = upcaster(payload)
            except Exception as error:
                detail = f"the upcaster of {kind.name} from version {step} failed: {error!r}"
                raise UndecodableMessage("unknown_version", detail) from error
        return payload


registry = Registry()
"""Kinds of this process. A class is added when its module is imported."""


def upcasts(job: type[DeclaresKind], *, from_version: int) -> Callable[[Upcaster], Upcaster]:
    """Declare how a payload of `from_version` becomes one of the next version.

    The function takes and returns a dict of fields:

        @upcasts(SendInvoice, from_version=1)
        def split_name(payload: dict[str, Any]) -> dict[str, Any]: ...
    """

    def declare(upcaster: Upcaster) -> Upcaster:
        registry.add_upcaster(job.kind(), from_version, upcaster)
        return upcaster

    return declare


def _path(job: type[Any]) -> str:
    return f"{job.__module__}.{job.__qualname__}"
