"""The metadata of the ledger's tables, and the types of ids and names."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.types import Text

metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"},
)

ID, NAME = Text(128), Text(128)
