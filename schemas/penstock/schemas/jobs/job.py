"""`Job`: one typed, immutable message asking for one piece of work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr

from penstock.config.errors import KindError
from penstock.schemas.jobs.durations import Duration, positive_duration
from penstock.schemas.jobs.kind import PRIORITIES, SENSITIVE, DeliveryPromise, Kind, Priority, registry, reserved_queue
from penstock.schemas.jobs.limits import SHARES, Limit
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.unique_policy import Unique, UniquePolicy

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,126}")
"""What a kind or queue may be called: it becomes part of keys and queue names on every broker."""

_T = TypeVar("_T")
Sensitive = Annotated[_T, SENSITIVE]
"""`iban: Sensitive[str]`: the field travels as it is, and shows as `***` in logs, Flower and the dashboards."""


class Job(BaseModel):
    """The base of every message. A subclass with a `kind` is registered when its class statement runs.

        class SendInvoice(Job, kind="invoice.send", queue="emails", version=2, timeout=30):
            invoice_id: int
            to: EmailStr

    Class keywords:
        kind: the stable name on the wire. Without one the class is a base for others and cannot be sent.
        queue: the queue that carries it; `default` if not given.
        version: of the fields, from 1; raise it with an upcaster when they change incompatibly.
        retry: a `RetryPolicy`.
        timeout: the longest an attempt may run, in seconds or as a timedelta.
        delivery: `at_least_once`, `once` or `at_most_once`.
        track: False keeps only failures in the ledger.
        unique_by: names of fields whose values make the job's key.
        unique: what becomes of a job whose key another one of this kind and tenant holds: `reject`, `existing`,
            `replace` or `debounce`. Without `unique_by` all jobs of the kind have one key.
        unique_for: how long a job holds its key, in seconds or as a timedelta; None: until it has ended.
        unique_states: the states in which it does, in place of all that are not final.
        debounce: the quiet period of that policy, in seconds or as a timedelta.
        aliases: former kinds, still understood.
        priority: `high`, `normal` or `low`, unless `enqueue` says otherwise.
        expires_in: age past which a waiting job is discarded, in seconds or as a timedelta.
        max_crashes: crashes of a worker under it after which it is a dead letter.
        limits: `Concurrency` and `Rate`, all of which a job must be let through by.

    Raises:
        KindError: a keyword is wrong; DuplicateKind: another class has this kind.
    """

    # JSON has no infinity and no NaN: they would arrive as null.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    __kind__: ClassVar[Kind | None] = None

    def __init_subclass__(
        cls,
        *,
        kind: str | None = None,
        queue: str = "default",
        version: int = 1,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        delivery: DeliveryPromise = "at_least_once",
        track: bool = True,
        unique_by: Sequence[str] = (),
        unique: UniquePolicy | None = None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
        aliases: Sequence[str] = (),
        priority: Priority = "normal",
        expires_in: Duration | None = None,
        max_crashes: int | None = None,
        limits: Sequence[Limit] = (),
        **config: Any,
    ) -> None:
        # Only the signature counts here, for editors and mypy; the fields are not there yet.
        super().__init_subclass__(**config)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        kind: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        expires_in: Duration | None = None,
        unique_by: Sequence[str] = (),
        unique: UniquePolicy | None = None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
        aliases: Sequence[str] = (),
        limits: Sequence[Limit] = (),
        **options: Any,
    ) -> None:
        cls.__kind__ = None
        if kind is None:
            if options:
                raise KindError(f"{cls.__qualname__}: {', '.join(sorted(options))} given without a kind")
            return
        declared = Kind(
            name=kind,
            job=cls,
            retry=retry if retry is not None else RetryPolicy(),
            timeout=_duration(cls, "timeout", timeout),
            expires_in=_duration(cls, "expires_in", expires_in),
            unique_by=_strings(cls, "unique_by", unique_by),
            unique=_unique(cls, unique, unique_for, unique_states, debounce),
            aliases=_strings(cls, "aliases", aliases),
            limits=_limits(cls, limits),
            **options,
        )
        _check(declared)
        registry.add(declared)
        cls.__kind__ = declared

    @classmethod
    def kind(cls) -> Kind:
        """What is declared beside this class.

        Raises:
            KindError: the class has no kind.
        """
        if cls.__kind__ is None:
            raise KindError(f'{cls.__qualname__} has no kind; declare it as class {cls.__name__}(Job, kind="…")')
        return cls.__kind__

    def redacted(self) -> dict[str, Any]:
        """The fields as JSON values, with `***` for sensitive ones."""
        return self.kind().redact(self.model_dump(mode="json"))

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some fields changed, validated anew."""
        return self.model_validate({**self.model_dump(), **changes})

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        hidden = self.__kind__.sensitive if self.__kind__ is not None else frozenset[str]()
        return [(name, "***" if name in hidden else value) for name, value in super().__repr_args__()]

    def __str__(self) -> str:
        return repr(self)


def _check(kind: Kind) -> None:
    """Refuse what could only go wrong later, in a worker."""
    label = f"{kind.job.__qualname__} (kind {kind.name!r})"
    for what, name in [
        ("kind", kind.name),
        ("queue", kind.queue),
        *(("alias", alias) for alias in kind.aliases),
    ]:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise KindError(f"{label}: {what} {name!r} must be letters, digits, '_', '.', ':' or '-', at most 127")
    if reserved := reserved_queue(kind.queue):
        raise KindError(f"{label}: queue {kind.queue!r} {reserved}; choose another name")
    if not isinstance(kind.version, int) or kind.version < 1:
        raise KindError(f"{label}: version must be an integer from 1, not {kind.version!r}")
    if kind.delivery not in get_args(DeliveryPromise):
        raise KindError(f"{label}: delivery must be one of {', '.join(get_args(DeliveryPromise))}")
    if kind.priority not in PRIORITIES:
        raise KindError(f"{label}: priority must be one of {', '.join(PRIORITIES)}")
    if kind.delivery != "at_least_once" and not kind.track:
        raise KindError(f"{label}: delivery={kind.delivery!r} needs the ledger; remove track=False")
    if kind.unique is not None and not kind.track:
        raise KindError(f"{label}: unique={kind.unique.policy!r} needs the ledger; remove track=False")
    if kind.max_crashes is not None and kind.max_crashes < 1:
        raise KindError(f"{label}: max_crashes must be 1 or more")
    if kind.limits and not kind.track:
        raise KindError(f"{label}: what a limit holds back waits in the ledger; remove track=False")
    fields = kind.job.model_fields
    if strange := [one.by for one in kind.limits if one.by not in (None, *SHARES, *fields)]:
        raise KindError(f"{label}: a limit by {strange[0]!r} needs a field of that name, or one of {', '.join(SHARES)}")
    if missing := [name for name in kind.unique_by if name not in fields]:
        raise KindError(f"{label}: unique_by names {', '.join(missing)}, which it does not have as fields")
    for name, info in fields.items():
        if info.annotation in (SecretStr, SecretBytes):
            raise KindError(f"{label}: {name} would reach the worker as '*****'; annotate it Sensitive[str] instead")


def _duration(job: type[Job], name: str, value: Duration | None) -> timedelta | None:
    try:
        return positive_duration(name, value)
    except ValueError as error:
        raise KindError(f"{job.__qualname__}: {error}") from error


def _unique(job: type[Job], *keywords: Any) -> Unique | None:
    try:
        return Unique.of(*keywords)
    except ValueError as error:
        raise KindError(f"{job.__qualname__}: {error}") from error


def _limits(job: type[Job], value: Sequence[Limit]) -> tuple[Limit, ...]:
    limits = (value,) if isinstance(value, Limit) else tuple(value)
    labels = [one.label for one in limits]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise KindError(f"{job.__qualname__}: it has two limits {twice!r}; keep the lower one")
    return limits


def _strings(job: type[Job], name: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise KindError(f"{job.__qualname__}: {name} must be a sequence of names, such as ({value!r},)")
    return tuple(value)
