"""Handlers of a test: run by what `penstock.workers` provides, since producers know no worker."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from penstock.config.errors import ConfigError
from penstock.producers.testing.caught import CaughtJobs
from penstock.producers.testing.clock import Clock
from penstock.producers.testing.jobs import Ran

if TYPE_CHECKING:
    from penstock.config.settings import Settings

T = TypeVar("T")

GROUP = "penstock.testing"
"""Group of the entry point that names the `Runner`."""


class Runner(Protocol):
    """Runs jobs of a test's ledger with their handlers; `penstock.workers.testing` has the one there is."""

    def drain(
        self, kinds: frozenset[str], *, raising: bool, limit: int, reached: datetime, travelled_at: datetime | None
    ) -> Iterator[Ran]: ...

    def replace(self, resource: type[T], value: T) -> None: ...

    def close(self) -> None: ...


class HandlerRunner:
    """Runs the jobs that a test has caught; loads the workers' `Runner` when it first does.

    Attributes:
        inline: whether jobs are run as soon as they are enqueued.
        ran: every attempt so far.
    """

    def __init__(self, settings: Settings | None, jobs: CaughtJobs, clock: Clock, *, inline: bool) -> None:
        self.inline = inline
        self.ran: list[Ran] = []
        self._settings, self._jobs, self._clock = settings, jobs, clock
        self._lock = threading.Lock()
        self._draining = False
        self._runner: Runner | None = None

    def drain(self, kinds: frozenset[str] = frozenset(), *, raising: bool = True, limit: int = 1000) -> list[Ran]:
        """See `Kit.drain`."""
        with self._lock:
            if self._draining:
                raise RuntimeError("drain() is under way; what handlers enqueue is run by it")
            self._draining = True
        try:
            first = len(self.ran)
            clock = self._clock
            for attempt in self._open().drain(
                kinds, raising=raising, limit=limit, reached=clock.reached, travelled_at=clock.travelled_at
            ):
                self.ran.append(attempt)
            return self.ran[first:]
        finally:
            self._draining = False

    def run_inline(self) -> None:
        """Run what was just enqueued, if that is wanted; a drain under way does so anyway."""
        if self.inline and not self._draining:
            self.drain()

    def replace(self, resource: type[T], value: T) -> None:
        self._open().replace(resource, value)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def _open(self) -> Runner:
        if self._runner is None:
            database = self._jobs.database
            self._runner = _load_runner()(self._settings_for_handlers(), database, self._clock.opened_at)
        return self._runner

    def _settings_for_handlers(self) -> Settings:
        from penstock.config.settings import load_settings

        ledger = self._jobs.open()
        return (self._settings or load_settings()).model_copy(
            update={
                "broker_url": "redis://a-test-has-no-broker.invalid:1/0",
                "database_url": ledger.database.url,
                "storage_url": ledger.storage_url,
                "smtp_url": f"maildir:{ledger.folder}/mail",
                "max_result_bytes_inline": 4 * 1024 * 1024,
                "hooks": {},  # no one outside hears of a test's jobs
            }
        )


@functools.cache
def _load_runner() -> Any:
    for entry_point in entry_points(group=GROUP):
        try:
            return entry_point.load()
        except ModuleNotFoundError as error:
            raise ConfigError(f"drain() runs handlers: install penstock[workers] ({error})") from error
    raise ConfigError(f"drain() finds no entry point in the group {GROUP}: install penstock again")
