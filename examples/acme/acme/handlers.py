"""Handlers of the jobs: the code that the workers run."""

from __future__ import annotations

import io

from acme.jobs import WriteInvoice
from penstock.workers import Context, Storage, handles


@handles(WriteInvoice)
def write_invoice(job: WriteInvoice, ctx: Context, storage: Storage) -> str:
    """Write the invoice and return its key. A second run writes the same again."""
    key = f"invoices/{job.number}.txt"
    ctx.progress(0, 1, "writing")
    text = f"Invoice {job.number}\nfor {job.customer}\n"
    storage.write(key, io.BytesIO(text.encode()), "text/plain")
    ctx.log.info("wrote %s", key)
    return key
