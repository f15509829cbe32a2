"""Failures as events of Sentry, where `sentry-sdk` is initialised: by the application, or by `[sentry] dsn`."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from penstock.config.errors import ConfigError
from penstock.config.loaded import loaded
from penstock.config.settings import Settings
from penstock.ledger.transitions.claim import Claim
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.schemas.wire.codec import Message
from penstock.workers.telemetry.failures.failure import Failure

_MOST_SCOPES = 20_000
"""Attempts that run at a time, and some whose end is not reported."""
_INTERNAL = ("penstock.config.", "penstock.ledger.", "penstock.schemas.", "penstock.producers.", "penstock.workers.")
_TYPE = re.compile(r"([A-Za-z_][\w.]*): (.*)", re.DOTALL)
FLUSH_SECONDS = 2.0


def init_sentry(settings: Settings) -> None:
    """Initialise the SDK if `[sentry] dsn` is set. An application that does so itself, later, has the last word.

    Raises:
        ConfigError: sentry-sdk is not installed, or the DSN is wrong.
    """
    if settings.sentry.dsn is None:
        return
    try:
        import sentry_sdk
    except ImportError as error:
        raise ConfigError("[sentry] dsn is set, and sentry-sdk is missing: pip install 'penstock[sentry]'") from error
    if sentry_sdk.is_initialized():
        return
    try:
        # Without personal data, as is its default: to set that is deprecated.
        sentry_sdk.init(dsn=settings.sentry.dsn, environment=settings.sentry.environment)
    except ValueError as error:  # BadDsn
        raise ConfigError("[sentry] dsn is not a DSN; copy it from the project's settings, as Client Keys") from error


def sdk() -> Any:
    """The module `sentry_sdk` if it is initialised, else None. An SDK that nothing has imported is not imported."""
    module = loaded("sentry_sdk")
    return module if module is not None and module.is_initialized() else None


class Sentry:
    """Reports the failures of one process.

    Each attempt has an isolation scope of its own, so that its breadcrumbs and tags are not those of others. It is a
    fork of the scope of the thread that made this.
    """

    def __init__(self, settings: Settings) -> None:
        self._retries = settings.sentry.retries
        module = loaded("sentry_sdk")
        self._base = None if module is None else module.get_isolation_scope()
        self._scopes: OrderedDict[str, Any] = OrderedDict()
        self._prepared = False

    def prepare(self) -> Any:
        """Keep the SDK from making an event of each line in the log about a failure, which has an event already.

        Returns the SDK; None: it is not initialised.
        """
        sentry = sdk()
        if sentry is not None and not self._prepared:
            from sentry_sdk.integrations.logging import ignore_logger

            ignore_logger("penstock.jobs")
            self._prepared = True
        return sentry

    def started(self, claim: Claim) -> None:
        """Give the attempt that starts its scope; in its context."""
        if (sentry := self.prepare()) is None:
            return
        message = claim.message
        scope = self._fork(sentry, claim)
        scope.set_transaction_name(message.kind.name)
        sentry.Scope.set_isolation_scope(scope)
        self._scopes[message.id] = scope
        if len(self._scopes) > _MOST_SCOPES:
            self._scopes.popitem(last=False)

    def ended(self, claim: Claim) -> Any:
        """The scope of an attempt that has ended; None: it has none."""
        return self._scopes.pop(claim.message.id, None) if self._scopes else None

    def report(self, failure: Failure, claim: Claim | None, scope: Any) -> None:
        """Send the event of a failure.

        Arguments:
            claim: None: it was never claimed.
            scope: of its attempt; None: it did not run in this process.
        """
        level = "error" if failure.is_dead else self._retries
        if level == "off" or (sentry := self.prepare()) is None:
            return
        if scope is None:
            scope = self._fork(sentry, claim)
        event, hint = _event(sentry, failure)
        event["level"] = level
        with sentry.scope.use_isolation_scope(scope):
            sentry.capture_event(event, hint)

    def close(self) -> None:
        """Send what waits, for two seconds at most."""
        if (sentry := sdk()) is not None:
            sentry.flush(timeout=FLUSH_SECONDS)

    def _fork(self, sentry: Any, claim: Claim | None) -> Any:
        scope = (self._base or sentry.get_isolation_scope()).fork()
        scope.clear_breadcrumbs()
        if claim is not None and claim.message.kind.shapes:
            _protect(scope, claim.message)
        return scope


def _event(sentry: Any, failure: Failure) -> tuple[dict[str, Any], dict[str, Any]]:
    event: Any
    hint: dict[str, Any] = {}
    mechanism = {"type": "penstock", "handled": failure.outcome == "retry"}
    if failure.exception is not None:
        from sentry_sdk.utils import event_from_exception

        options = sentry.get_client().options
        event, hint = event_from_exception(failure.exception, client_options=options, mechanism=mechanism)
        _set_apart(event)
    else:
        # Raised in a process of its own, or not raised at all: there is only text.
        typed = _TYPE.match(failure.error)
        name, text = typed.groups() if typed else (failure.reason or failure.outcome, failure.error)
        event = {"exception": {"values": [{"type": name, "value": text, "mechanism": mechanism}]}}
        if failure.traceback is not None:
            event["extra"] = {"traceback": failure.traceback}
    tags = {name: getattr(failure, name) for name in ("kind", "queue", "engine", "worker", "outcome", "reason")}
    event["tags"] = {name: value for name, value in tags.items() if value is not None}
    event["fingerprint"] = [failure.fingerprint]
    event["transaction"] = failure.kind
    event["logger"] = "penstock.jobs"
    event["contexts"] = {
        "job": {
            "id": failure.job_id,
            "kind": failure.kind,
            "queue": failure.queue,
            "attempt": failure.attempt,
            "max_attempts": failure.max_attempts,
            "tenant": failure.tenant,
            "next_attempt_at": failure.next_attempt_at and failure.next_attempt_at.isoformat(),
            "error": failure.error,
        }
    }
    return event, hint


def _set_apart(event: Any) -> None:
    """Mark Penstock's own frames as such, and send none of their values: the application's are what people look for."""
    for value in event["exception"]["values"]:
        for frame in (value.get("stacktrace") or {}).get("frames", ()):
            if (frame.get("module") or "").startswith(_INTERNAL):
                frame["in_app"] = False
                frame.pop("vars", None)


def _protect(scope: Any, message: Message) -> None:
    """Have every event of a scope sent without local variables and without the values of the job's sensitive fields."""

    def process(event: Any, hint: Any) -> Any:
        try:
            return _scrubbed(event, message.kind.scrub_of_job(message.job))
        except Exception:  # one that cannot be looked through is not sent as it is
            return None

    scope.add_event_processor(process)


_PLAIN = (int, float, bool, type(None))
_CODE = frozenset(
    {"pre_context", "context_line", "post_context", "filename", "abs_path", "module", "function", "lineno"}
)
_KEPT = frozenset(
    {"timestamp", "start_timestamp", "event_id", "platform", "level", "type", "sdk", "modules", "debug_meta"}
)


def _scrubbed(value: Any, scrub: Scrub) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        kept: dict[Any, Any] = {}
        for key, item in value.items():
            if key == "vars":
                continue
            kept[key] = item if key in _CODE or key in _KEPT else _scrubbed(item, scrub)
        return kept
    if isinstance(value, list | tuple):
        return [_scrubbed(item, scrub) for item in value]
    if isinstance(value, _PLAIN):
        return value
    return scrub(repr(value))
