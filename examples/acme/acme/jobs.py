"""The messages. Importing them needs no worker, no engine and no database."""

from __future__ import annotations

from pydantic import Field

from penstock.schemas import Job


class WriteInvoice(Job, kind="invoice.write", queue="invoices", timeout=30, unique_by=("number",)):
    """Write one invoice into the storage."""

    number: int = Field(ge=1)
    customer: str = Field(min_length=1, max_length=100)
