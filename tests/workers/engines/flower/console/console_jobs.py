"""Kinds of the console's tests."""

from __future__ import annotations

from penstock.schemas import Job, Sensitive


class SendInvoice(Job, kind="shop.send_invoice", queue="mails"):
    customer: str
    amount: int
    card: Sensitive[str] = "none"
