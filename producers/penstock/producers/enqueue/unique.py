"""A producer's calls with unique jobs in them: on record first, then with the broker."""

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
from penstock.schemas.jobs.unique_policy import Unique
from penstock.schemas.wire.codec import Envelope

log = logging.getLogger("penstock.producers")


class Entrance:
    """A producer's call with unique jobs in it: enter them in the ledger, send them, and mark them as sent.

    What the broker cannot take now is sent by the dispatcher: once it is on record, a unique job is not lost.

    Arguments:
        policies: None for a job that is not unique, which is only sent.
    """

    def __init__(self, database: Database, envelopes: Sequence[Envelope], policies: Sequence[Unique | None]) -> None:
        self._database, self._envelopes, self._policies = database, envelopes, policies
        self._now = self._until = datetime.now(UTC)
        self._made = Admissions(self._now, self._until)
        self._began = 0.0

    def enter(self) -> list[Envelope]:
        """Returns what is to be sent.

        Raises:
            DuplicateJob: one is refused; none was entered. InvalidJob: likewise. LedgerUnavailable.
        """
        try:
            self._database.write(self._enter)
        except UndecodableMessage as error:
            raise InvalidJob(error.detail) from error
        self._began = time.monotonic()
        reserved_ids = set(self._reserved())
        pairs = zip(self._envelopes, self._policies, strict=True)
        return [envelope for envelope, policy in pairs if policy is None or envelope.id in reserved_ids]

    def _enter(self, connection: sa.Connection) -> None:
        self._now = datetime.now(UTC)
        self._until = self._now + RESERVED
        pairs = zip(self._envelopes, self._policies, strict=True)
        asked = [(envelope, policy) for envelope, policy in pairs if policy is not None]
        self._made = Admissions.admit(connection, self._database, asked, self._now, self._until)
        for number, (envelope, answer) in enumerate(zip(self._envelopes, self.answers, strict=True)):
            if answer.refused:
                error = DuplicateJob(envelope.kind, ours(envelope)["key"], answer.job_id)
                if len(self._envelopes) > 1:
                    error.add_note(f"it is number {number} of the batch; nothing was sent")
                raise error

    @property
    def answers(self) -> list[Admission]:
        """One for each envelope, in order."""
        admitted = iter(self._made.answers)
        pairs = zip(self._envelopes, self._policies, strict=True)
        return [Admission(one.id, one.queue, True) if policy is None else next(admitted) for one, policy in pairs]

    def sent(self) -> None:
        """The broker has them. What the ledger cannot enter now is sent again, which the claim absorbs."""
        if ids := self._reserved():
            try:
                self._database.write(
                    lambda connection: mark_sent(connection, self._database, ids, self._until, self._began)
                )
            except LedgerUnavailable as error:
                log.warning("%s; %d jobs that were sent are not marked, and will be sent again", error, len(ids))

    def failed(self, error: PenstockError) -> bool:
        """The broker did not take them all. Whether that is to be raised.

        Of a full queue's jobs nothing is left; others are sent by the dispatcher.

        Raises:
            LedgerUnavailable: a full queue's jobs stay on record, and the dispatcher sends them.
        """
        full = error.queue if isinstance(error, QueueFull) else None
        try:
            self._database.write(lambda connection: self._made.give_back(connection, self._database, full))
        except LedgerUnavailable:
            if full is not None:
                raise
            # They are sent when their reservation ends.
        if not isinstance(error, BrokerUnavailable) or None in self._policies:
            return True
        log.warning("%s; the dispatcher will send %d jobs that are on record", error, len(self._reserved()))
        return False

    def _reserved(self) -> list[str]:
        return self._made.reserved_ids()
