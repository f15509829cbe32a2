"""The table `penstock_outbox`, as `penstock.ledger.sql.tables` describes it for SQLAlchemy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.db import models


class UtcDateTimeField(models.DateTimeField):
    """An aware time, written in UTC with microseconds whatever USE_TZ and the connection's TIME_ZONE say.

    The dispatcher reads and writes the same column with SQLAlchemy.
    """

    def get_db_prep_value(self, value: datetime | None, connection: Any, prepared: bool = False) -> Any:
        if value is None or connection.vendor == "postgresql":
            return value
        text = value.astimezone(UTC).isoformat(" ", "microseconds")
        return text[:26]  # without the offset

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> datetime | None:
        if value is None:
            return None
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


class OutboxEntry(models.Model):
    """A job that waits for its transaction's commit, or after that for a dispatcher, which deletes it."""

    position = models.BigAutoField(primary_key=True)
    job_id = models.CharField(max_length=128, db_column="id")
    kind = models.CharField(max_length=128)
    queue = models.CharField(max_length=128)
    priority = models.CharField(max_length=8)
    key = models.CharField(max_length=255, null=True)
    track = models.BooleanField()
    policy = models.TextField(null=True)
    headers = models.TextField()
    body = models.BinaryField()
    created_at = UtcDateTimeField()
    taken_by = models.CharField(max_length=36, null=True)
    taken_until = UtcDateTimeField(null=True)

    class Meta:
        app_label = "penstock"
        db_table = "penstock_outbox"
        indexes = [models.Index(fields=["key", "position"], name="penstock_outbox_key_position")]  # noqa: RUF012
        verbose_name_plural = "outbox"

    def __str__(self) -> str:
        return f"{self.kind} {self.job_id}"
