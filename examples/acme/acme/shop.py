"""The data of a web backend, in a database of its own: what the examples for SQLAlchemy's frameworks share.

`python -m acme.shop` makes the tables, the outbox's among them.
"""

from __future__ import annotations

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from penstock.producers.outbox import create_outbox

DATABASE_URL = os.environ.get("SHOP_DATABASE_URL", "sqlite:///shop.db")
SECRET = os.environ.get("SHOP_SECRET", "a secret only for trying this out")


class Base(DeclarativeBase): ...


class Invoice(Base):
    __tablename__ = "invoices"

    number: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]


if __name__ == "__main__":
    engine = create_engine(DATABASE_URL)
    Base.metadata.create_all(engine)
    create_outbox(engine)
