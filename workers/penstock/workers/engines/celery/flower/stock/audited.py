"""Flower's own acts on workers: who may do them, and their lines in the audit log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from flower.api import control
from tornado.web import HTTPError

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.workers.engines.celery.flower.access.guarded import Guarded
from penstock.workers.engines.celery.flower.access.people import Role

log = logging.getLogger("penstock.flower")

SAFE = ("GET", "HEAD", "OPTIONS")
WORDS = {
    control.WorkerShutDown: "shutdown",
    control.WorkerPoolGrow: "pool grow",
    control.WorkerPoolShrink: "pool shrink",
    control.WorkerQueueAddConsumer: "add consumer",
    control.WorkerQueueCancelConsumer: "cancel consumer",
}
"""Acts of Flower's that do here what they say, with their words in the audit log."""
_ARGUMENTS = ("n", "queue")
"""Arguments of acts that the log keeps."""
_LONGEST = 255


class Audited(Guarded):
    """In front of a handler of Flower's that changes something, also of one that only a later Flower has.

    The line is written before the act. If Flower or the worker refuses, the status is added later.

    Attributes:
        word: the act, as the log has it.
        subject_kind: of what its address names.
    """

    word: ClassVar[str] = ""
    subject_kind: ClassVar[str] = "worker"
    acting_role: ClassVar[Role] = Role.ADMIN
    _line: str | None = None

    @property
    def _ledger(self) -> Database:
        return self.application.services.ledger  # type: ignore[attr-defined, no-any-return]

    async def prepare(self) -> None:
        await super().prepare()
        if self._finished or self.request.method in SAFE:
            return
        self.demand(self.acting_role)
        if self.person.scope.is_bounded:
            self.refuse(f"a worker also runs jobs that are not for {self.person.name} ({self.person.bounds})")
        subject = self.path_args[0] if self.path_args else None
        detail: dict[str, Any] = {"by": "flower"}
        for name in _ARGUMENTS:
            if (value := self.get_argument(name, None)) is not None:
                detail[name] = value[:_LONGEST]

        def write_line(connection: Any) -> str:
            line: dict[str, Any] = {
                "act": self.word,
                "subject_kind": self.subject_kind,
                "subject": subject,
                "detail": detail,
            }
            return audit.write(connection, actor=self.person.name, **line)

        try:
            self._line = await asyncio.get_running_loop().run_in_executor(None, self._ledger.write, write_line)
        except LedgerUnavailable as error:
            log.error("an act in Flower cannot be recorded and is not done: %s", error)
            raise HTTPError(503, "the audit log cannot be written, so nothing was done") from error

    def on_finish(self) -> None:
        line, status = self._line, self.get_status()
        if line is not None and status >= 400:
            asyncio.get_running_loop().run_in_executor(None, self._add_refusal, line, status)
        super().on_finish()

    def _add_refusal(self, line: str, status: int) -> None:
        try:
            self._ledger.write(lambda connection: audit.add_detail(connection, line, {"refused": status}))
        except LedgerUnavailable as error:
            log.warning("the audit log does not say that %s was refused: %s", line, error)
