"""The outbox: of the ledger's own database, and of a database of a user's."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import ID, NAME, metadata
from penstock.ledger.sql.types import LongBytes, LongText, Text, UtcDateTime

OUTBOX_CHANNEL = "penstock_outbox"
OUTBOX_TRIGGER = (
    f"CREATE OR REPLACE FUNCTION penstock_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN PERFORM pg_notify('{OUTBOX_CHANNEL}', ''); RETURN NULL; END $$",
    "CREATE TRIGGER penstock_outbox_notify AFTER INSERT ON penstock_outbox "
    "FOR EACH STATEMENT EXECUTE FUNCTION penstock_outbox_notify()",
)
"""Trigger by which PostgreSQL wakes the dispatcher at the commit."""


def _outbox(metadata: sa.MetaData) -> sa.Table:
    table = sa.Table(
        "penstock_outbox",
        metadata,
        # Assigned by the database, so it rises from one transaction to the next. Jobs of one key leave in this order.
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("id", ID, nullable=False),  # of the job; not unique, so that a repeated call is harmless
        sa.Column("kind", NAME, nullable=False),
        sa.Column("queue", NAME, nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("key", Text(255)),
        sa.Column("track", sa.Boolean, nullable=False),  # from its kind, which the dispatcher may not know
        sa.Column("policy", sa.Text),  # JSON object; of a unique job
        sa.Column("headers", LongText, nullable=False),  # JSON object
        sa.Column("body", LongBytes, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("taken_by", sa.String(36)),  # the dispatcher's batch that reserved it
        sa.Column("taken_until", UtcDateTime),  # end of that reservation, on this database's clock
        sa.Index(None, "key", "position"),
    )
    for statement in OUTBOX_TRIGGER:
        trigger = sa.DDL(statement)  # type: ignore[no-untyped-call]
        sa.event.listen(table, "after_create", trigger.execute_if(dialect="postgresql"))
    return table


outbox_metadata = sa.MetaData(naming_convention=metadata.naming_convention)
"""Tables of an outbox in a user's own database."""
outbox = _outbox(outbox_metadata)
_outbox(metadata)  # the ledger's database has an outbox, too
