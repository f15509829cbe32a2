"""A server that takes packets and answers nothing, as one that is frozen or has lost its disk."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.polling import retry
from support.servers.databases import MariadbServer

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit_subjects
from penstock.ledger.sql.upgrade import upgrade


def test_a_mariadb_that_stalls_is_unavailable_until_it_answers(tmp_path: Path) -> None:
    server = MariadbServer(tmp_path / "mariadb")
    try:
        server.start()
        ledger, newcomer = Database(server.url, answer_seconds=1), Database(f"{server.url}?read_timeout=1")
        with closing(Database(server.url)) as patient:
            upgrade(patient)  # a statement of it may take longer on a busy machine

        def insert_subject() -> None:
            row = {"subject": "penstock", "audit_id": "1"}
            ledger.write(lambda connection: connection.execute(ledger.insert_ignore(audit_subjects), [row]))

        retry(insert_subject, LedgerUnavailable)
        server.stall()
        with pytest.raises(LedgerUnavailable, match="timed out"):
            insert_subject()
        with pytest.raises(LedgerUnavailable, match="timed out"):  # while it connects, which has its own limit
            newcomer.read(lambda connection: connection.scalar(sa.select(1)))
        server.resume()
        retry(insert_subject, LedgerUnavailable)
        assert newcomer.read(lambda connection: connection.scalar(sa.select(audit_subjects.c.subject))) == "penstock"
        ledger.close()
        newcomer.close()
    finally:
        server.close()
