"""Calls with unique jobs in them: on record first, then with the broker."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.config.errors import (
    BrokerUnavailable,
    DuplicateJob,
    InvalidJob,
    LedgerUnavailable,
    PenstockError,
    QueueFull,
    UndecodableMessage,
)
from penstock.ledger.rows.jobs import RESERVED, mark_sent
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.enqueue import Admission, Admissions, ours
from penstock.producers.enqueue.envelopes import Prepared
from penstock.schemas.wire.codec import Envelope

log = logging.getLogger("penstock.producers")


class UniqueEnqueue:
    """Call with unique jobs in it: record them in the ledger, send them, and mark them as sent.

    The dispatcher sends what the broker cannot take now: once it is on record, a unique job is not lost.

    Arguments:
        prepared: envelopes, each with its policy; None for a job that is not unique, which is only sent.
    """

    def __init__(self, database: Database, prepared: Sequence[Prepared]) -> None:
        self._database, self._prepared = database, prepared
        self._now = self._until = datetime.now(UTC)
        self._decisions = Admissions(self._now, self._until)
        self._began = 0.0

    def admit(self) -> list[Envelope]:
        """Record the unique jobs. Returns the envelopes to send.

        Raises:
            DuplicateJob: one is refused; none was recorded. InvalidJob: likewise. LedgerUnavailable.
        """
        try:
            self._database.write(self._admit)
        except UndecodableMessage as error:
            raise InvalidJob(error.detail) from error
        self._began = time.monotonic()
        reserved_ids = set(self._reserved())
        return [envelope for envelope, policy in self._prepared if policy is None or envelope.id in reserved_ids]

    def _admit(self, connection: sa.Connection) -> None:
        self._now = datetime.now(UTC)
        self._until = self._now + RESERVED
        requests = [(envelope, policy) for envelope, policy in self._prepared if policy is not None]
        self._decisions = Admissions.admit(connection, self._database, requests, self._now, self._until)
        for number, ((envelope, _), admission) in enumerate(zip(self._prepared, self.admissions, strict=True)):
            if admission.refused:
                error = DuplicateJob(envelope.kind, ours(envelope)["key"], admission.job_id)
                if len(self._prepared) > 1:
                    error.add_note(f"it is number {number} of the batch; nothing was sent")
                raise error

    @property
    def admissions(self) -> list[Admission]:
        """Admission of each envelope, in order."""
        unique = iter(self._decisions.answers)
        return [
            Admission(envelope.id, envelope.queue, True) if policy is None else next(unique)
            for envelope, policy in self._prepared
        ]

    def sent(self) -> None:
        """Mark the jobs as sent. What cannot be marked now is sent again, which the claim absorbs."""
        if ids := self._reserved():
            try:
                self._database.write(
                    lambda connection: mark_sent(connection, self._database, ids, self._until, self._began)
                )
            except LedgerUnavailable as error:
                log.warning("%s; %d jobs that were sent are not marked, and will be sent again", error, len(ids))

    def failed(self, error: PenstockError) -> bool:
        """Release what the broker did not take. Returns whether the error is to be raised.

        Of a full queue's jobs nothing stays on record; the dispatcher sends the others.

        Raises:
            LedgerUnavailable: a full queue's jobs stay on record, and the dispatcher sends them.
        """
        full = error.queue if isinstance(error, QueueFull) else None
        try:
            self._database.write(lambda connection: self._decisions.give_back(connection, self._database, full))
        except LedgerUnavailable:
            if full is not None:
                raise
            # They are sent when their reservation ends.
        if not isinstance(error, BrokerUnavailable) or any(policy is None for _, policy in self._prepared):
            return True
        log.warning("%s; the dispatcher will send %d jobs that are on record", error, len(self._reserved()))
        return False

    def _reserved(self) -> list[str]:
        return self._decisions.reserved_ids()
