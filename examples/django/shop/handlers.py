"""Handlers of the shop's jobs. A worker finds this module by DJANGO_SETTINGS_MODULE."""

from __future__ import annotations

import io

from acme.jobs import WriteInvoice

from penstock.workers import Storage, handles
from shop.models import Invoice


@handles(WriteInvoice)
def write_invoice(job: WriteInvoice, storage: Storage) -> str:
    """Write the invoice, and where it is into its row. A second run does the same again."""
    key = f"invoices/{job.number}.txt"
    storage.write(key, io.BytesIO(f"Invoice {job.number}\nfor {job.customer}\n".encode()), "text/plain")
    Invoice.objects.filter(pk=job.number).update(file=key)
    return key
