"""The outbox of Django's ORM in users' tests: `penstock.take_outbox("default")`."""

from __future__ import annotations

import json

from django.db import transaction

from penstock.producers.contrib.django.models import OutboxEntry
from penstock.schemas.wire.codec import Envelope


def take_outbox(alias: str) -> list[Envelope]:
    """Delete, in the current transaction, the outbox rows that it sees; return their envelopes in order."""
    entries = OutboxEntry._default_manager.using(alias)
    with transaction.atomic(using=alias):
        rows = list(entries.order_by("position"))
        entries.filter(position__in=[row.position for row in rows]).delete()
    return [Envelope(row.queue, row.priority, json.loads(row.headers), bytes(row.body)) for row in rows]
