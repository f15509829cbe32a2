"""Options of kinds that `[kinds.NAME]` of penstock.toml sets, in place of those that the classes declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.config.errors import ConfigError
from penstock.config.suggestions import did_you_mean
from penstock.schemas.jobs.declaration import check_together
from penstock.schemas.jobs.kind import Kind, checked_queue, registry
from penstock.schemas.jobs.limits import Concurrency, Limit

if TYPE_CHECKING:
    from penstock.config.sections.kinds import KindRetrySettings, KindSettings
    from penstock.schemas.jobs.retry_policy import RetryPolicy


def override_kinds(settings: Mapping[str, KindSettings]) -> None:
    """Set options of the kinds of this process, also of those whose modules are imported later.

    Each call begins with what the classes declare. Kinds that it does not name stay as they are.

    Raises:
        ConfigError: an option does not fit its kind; names both. For a kind that is declared later, its class statement
            raises it.
    """
    for name, options in settings.items():
        registry.override(name, _Override(name, options))


class _Override:
    """Declared kind → the kind with the options of its section."""

    def __init__(self, name: str, settings: KindSettings) -> None:
        self._name, self._settings = name, settings

    def __call__(self, kind: Kind) -> Kind:
        plain = ("queue", "priority", "timeout", "soft_timeout", "expires_in", "max_crashes")
        options: dict[str, Any] = {
            name: value for name in plain if (value := getattr(self._settings, name)) is not None
        }
        try:
            if "queue" in options:
                checked_queue(options["queue"])
            if self._settings.retry is not None:
                options["retry"] = _policy(kind.retry, self._settings.retry)
            if self._settings.concurrency is not None:
                options["limits"] = _limited(kind.limits, Concurrency(self._settings.concurrency))
            changed = replace(kind, **options)
            check_together(changed)
        except ValueError as error:
            raise ConfigError(f'[kinds."{self._name}"]: {error}') from error
        return changed


def _policy(declared: RetryPolicy, settings: KindRetrySettings) -> RetryPolicy:
    by_error = dict(declared.by_error)
    names = {error.__name__: error for error in by_error}
    for name, values in settings.by_error.items():
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has {', '.join(sorted(names)) or 'none'}"
            raise ValueError(f"retry.by_error: the kind declares no policy for {name!r}{hint}")
        by_error[names[name]] = _changed(by_error[names[name]], values.model_dump(exclude_none=True))
    general = settings.model_dump(exclude_none=True, exclude={"by_error"})
    return _changed(declared, {**general, "by_error": by_error})


def _changed(policy: RetryPolicy, values: dict[str, Any]) -> RetryPolicy:
    """The policy with these values; `model_fields_set` has them, too."""
    return type(policy).model_validate({**{name: getattr(policy, name) for name in policy.model_fields_set}, **values})


def _limited(limits: tuple[Limit, ...], limit: Concurrency) -> tuple[Limit, ...]:
    return (*(declared for declared in limits if declared.label != limit.label), limit)
