"""Declarations of kinds: the keywords of a job class and its fields, checked when its class statement runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from pydantic import AliasChoices, AliasPath, BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from penstock.config.errors import KindError
from penstock.config.suggestions import did_you_mean, one_of
from penstock.schemas.jobs.durations import positive_duration
from penstock.schemas.jobs.kind import NAME, PRIORITIES, DeliveryPromise, Kind, checked_queue
from penstock.schemas.jobs.limits import SHARES, Concurrency, Limit, Rate
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.sensitive import holds, shapes_of_model
from penstock.schemas.jobs.unique_policy import Unique

LARGEST = 2**31 - 1
"""The largest number that the wire and every database take."""

_POLICY = ("unique", "unique_for", "unique_states", "debounce")


def declare_kind(job: type[Any], keywords: Mapping[str, Any], methods: Sequence[str] = ()) -> Kind | None:
    """Keywords of a job class → its kind; None: it has none, and is a base for others.

    Arguments:
        methods: names of the base class that no field may take.

    Raises:
        KindError: a keyword or a field is wrong; names the class, what is wrong, and what is right.
    """
    where = f"{job.__module__}.{job.__qualname__}"
    try:
        if hiding := [name for name in job.model_fields if name in methods]:
            raise ValueError(f"field {hiding[0]!r} would hide the method Job.{hiding[0]}(); give it another name")
        kind = keywords.get("kind")
        if kind is None:
            if keywords.keys() - {"kind"}:
                raise ValueError(f"{', '.join(sorted(keywords.keys() - {'kind'}))} given without a kind")
            return None
        _name("kind", kind)
        where = f"{where} (kind {kind!r})"
        options = {name: _CHECKS[name](value) for name, value in keywords.items() if name in _CHECKS}
        unique = Unique.of(*(keywords.get(name) for name in _POLICY))
        declared = Kind(name=kind, job=job, unique=unique, **{k: v for k, v in options.items() if v is not None})
        for check in (check_together, _check_names, _check_fields, _check_sensitive):
            check(declared)
    except ValueError as error:
        raise KindError(f"{where}: {error}") from error
    return declared


def refuse_unknown(job: type[Any], unknown: Mapping[str, Any], keywords: Sequence[str]) -> None:
    """Refuse keywords of a class statement that neither a job nor pydantic knows.

    Raises:
        KindError: names the first one, and the nearest that there is.
    """
    if unknown:
        from pydantic import ConfigDict

        name = next(iter(unknown))
        hint = did_you_mean(name, [*keywords, *ConfigDict.__annotations__]) or f"; a job takes {', '.join(keywords)}"
        raise KindError(f"{job.__module__}.{job.__qualname__}: unknown keyword {name!r}{hint}")


# The keywords, one by one. Each check takes the value and returns it as a `Kind` holds it.


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"{what} {value!r} must be letters, digits, '_', '.', ':' or '-', at most 127")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(f"{name} must be an integer from 1 to {LARGEST}, not {value!r}")
    return value


def _optional_whole(name: str, value: Any) -> int | None:
    return None if value is None else _whole(name, value)


def _choice(name: str, choices: Sequence[str], value: Any) -> str:
    one_of(name, value, choices)
    return str(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return value


def _retry(value: Any) -> RetryPolicy | None:
    if value is None or isinstance(value, RetryPolicy):
        return value
    hint = f", such as RetryPolicy(max_attempts={value})" if type(value) is int and value > 0 else ""
    raise ValueError(f"retry must be a RetryPolicy{hint}, not {value!r}")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"{name} must be a sequence of names, such as ({value!r},)")
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} must be a sequence of names, such as a tuple, not {value!r}")
    if len(set(value)) != len(value):
        raise ValueError(f"{name} has a name twice: {', '.join(value)}")
    return tuple(value)


def _limits(value: Any) -> tuple[Limit, ...]:
    limits = (value,) if isinstance(value, Limit) else value
    if not isinstance(limits, Sequence) or not all(isinstance(limit, Concurrency | Rate) for limit in limits):
        raise ValueError(f"limits must be a sequence of Concurrency and Rate, not {value!r}")
    labels = [limit.label for limit in limits]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"it has two limits {twice!r}; keep the lower one")
    return tuple(limits)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "queue": checked_queue,
    "version": partial(_whole, "version"),
    "retry": _retry,
    "timeout": partial(positive_duration, "timeout"),
    "soft_timeout": partial(positive_duration, "soft_timeout"),
    "delivery": partial(_choice, "delivery", get_args(DeliveryPromise)),
    "track": partial(_flag, "track"),
    "unique_by": partial(_strings, "unique_by"),
    "aliases": partial(_strings, "aliases"),
    "priority": partial(_choice, "priority", PRIORITIES),
    "expires_in": partial(positive_duration, "expires_in"),
    "max_crashes": partial(_optional_whole, "max_crashes"),
    "limits": _limits,
    "search": partial(_strings, "search"),
}


# What must fit together.


def check_together(kind: Kind) -> None:
    """Check the options of a kind against each other. Raises ValueError."""
    if kind.soft_timeout is not None and kind.timeout is not None and kind.soft_timeout >= kind.timeout:
        raise ValueError("soft_timeout must be less than timeout, which ends what ignores it")
    if kind.track:
        return
    if kind.delivery != "at_least_once":
        raise ValueError(f"delivery={kind.delivery!r} needs the ledger; remove track=False")
    if kind.unique is not None:
        raise ValueError(f"unique={kind.unique.policy!r} needs the ledger; remove track=False")
    if kind.limits:
        raise ValueError("what a limit holds back waits in the ledger; remove track=False")
    if kind.search:
        raise ValueError("search finds jobs in the ledger; remove track=False")


def _check_names(kind: Kind) -> None:
    for alias in kind.aliases:
        _name("alias", alias)
    fields = kind.job.model_fields
    if strange := [limit.by for limit in kind.limits if limit.by not in (None, *SHARES, *fields)]:
        hint = did_you_mean(strange[0], [*SHARES, *fields])
        raise ValueError(f"a limit by {strange[0]!r} needs a field of that name, or one of {', '.join(SHARES)}{hint}")
    if missing := [name for name in kind.unique_by if name not in fields]:
        hint = did_you_mean(missing[0], fields)
        raise ValueError(f"unique_by names {', '.join(missing)}, which it does not have as fields{hint}")
    if missing := [name for name in kind.search if name not in fields]:
        hint = did_you_mean(missing[0], fields)
        raise ValueError(f"search names {', '.join(missing)}, which it does not have as fields{hint}")


def _check_fields(kind: Kind) -> None:
    """Refuse fields that a worker would not get as they were sent."""
    job = kind.job
    if job.model_computed_fields and job.model_config.get("extra") == "forbid":
        computed = ", ".join(job.model_computed_fields)
        raise ValueError(f"the worker would refuse the computed field {computed}; make it a plain property")
    for name, info in job.model_fields.items():
        if any(kind in (SecretStr, SecretBytes) for kind in _types_in(info.annotation, set())):
            raise ValueError(f"{name} would reach the worker as '*****'; annotate it Sensitive[str] instead")
        if info.exclude and info.is_required():
            raise ValueError(f"{name} is needed and has exclude=True, so it would not travel; remove exclude")
        if not _reads_back(job, name, info):
            raise ValueError(
                f"{name} travels under the name {info.serialization_alias or name!r}, by which no worker would find "
                "it; give it one alias for both ways"
            )


def _check_sensitive(kind: Kind) -> None:
    """Refuse `Sensitive` where it would have no effect, and keep pydantic's errors from repeating the values."""
    job = kind.job
    shapes = shapes_of_model(job)  # not those of the kind, which are kept: a name may be resolved later
    fields = (shapes[0].fields or {}) if shapes else {}
    if hidden := [name for name in kind.search if holds(fields.get(name, ()))]:
        raise ValueError(f"search names {', '.join(hidden)}, which is Sensitive: its values could be found by guessing")
    if holds(shapes) and not job.model_config.get("hide_input_in_errors"):
        job.model_config["hide_input_in_errors"] = True
        if job.__pydantic_complete__:
            job.model_rebuild(force=True)


def _types_in(annotation: Any, seen: set[Any]) -> Iterator[Any]:
    """The types that an annotation is made of, those of fields of models included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            for info in annotation.model_fields.values():
                yield from _types_in(info.annotation, seen)
    elif inner := get_args(annotation):
        for argument in inner:
            yield from _types_in(argument, seen)
    else:
        yield annotation


def _reads_back(job: type[Any], name: str, info: FieldInfo) -> bool:
    """Whether a field is read under the name that it is written under."""
    config = job.model_config
    alias = info.validation_alias if config.get("validate_by_alias", True) else None
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    names = {choice.path[0] if isinstance(choice, AliasPath) else choice for choice in choices}
    if alias is None or config.get("validate_by_name") or config.get("populate_by_name"):
        names.add(name)
    return (info.serialization_alias or name) in names
