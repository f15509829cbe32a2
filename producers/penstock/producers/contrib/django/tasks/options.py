"""`OPTIONS` of a backend: how its tasks are retried, how long they may run, and which database has the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from pydantic import ValidationError

from penstock.config.suggestions import did_you_mean
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.wire.payloads import explain

_POLICY = ("retry", "timeout", "soft_timeout", "delivery", "expires_in", "max_crashes", "limits")
"""Keywords of a job class, by the same names."""
_SPECIAL = (*_POLICY, "aliases")
_OWN = ("database", "tasks")
_ONCE = RetryPolicy(max_attempts=1)


class Options:
    """The options of a backend, read.

    Arguments:
        alias: of the backend, for messages.
        options: `OPTIONS` of its settings: keywords of a job class for all tasks; under `tasks` others for some, by
            module path, and their `aliases`; `database`, the alias of the database with the outbox.

    Attributes:
        database: None: as the routers say.
        tasks: the module paths that have options of their own.

    Raises:
        ImproperlyConfigured: an option does not exist, or a retry policy is wrong.
    """

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        where = f"TASKS[{alias!r}]['OPTIONS']"
        _check_names(where, options, (*_POLICY, *_OWN))
        self.database: str | None = options.get("database")
        self._common = _read(where, {name: value for name, value in options.items() if name not in _OWN})
        self._special: dict[str, dict[str, Any]] = {}
        for path, special in (options.get("tasks") or {}).items():
            at = f"{where}['tasks'][{path!r}]"
            _check_names(at, special, _SPECIAL)
            self._special[path] = _read(at, special)
        self.tasks = self._special.keys()

    def policy(self, path: str) -> dict[str, Any]:
        """Keywords of the job class of a task. Without a policy in the settings a task is tried once."""
        return {"retry": _ONCE, **self._common, **self._special.get(path, {})}


def _check_names(where: str, options: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in options:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it takes {', '.join(names)}"
            raise ImproperlyConfigured(f"{where} has an unknown option {name!r}{hint}")


def _read(where: str, options: dict[str, Any]) -> dict[str, Any]:
    retry = options.get("retry")
    if isinstance(retry, Mapping):
        errors = retry.get("give_up_on", ())
        errors = (errors,) if isinstance(errors, str | type) else errors
        try:
            classes = tuple(import_string(error) if isinstance(error, str) else error for error in errors)
            options = {**options, "retry": RetryPolicy(**{**retry, "give_up_on": classes})}
        except ImportError as error:
            raise ImproperlyConfigured(f"{where}['retry']['give_up_on']: {error}") from error
        except ValidationError as error:
            raise ImproperlyConfigured(f"{where}['retry']: {explain(error)}") from error
    return options
