"""The outbox's table, and on PostgreSQL the trigger that wakes the dispatcher."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models

import penstock.producers.contrib.django.models

TABLE = "penstock_outbox"
TRIGGER = (
    "CREATE OR REPLACE FUNCTION penstock_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_notify('penstock_outbox', ''); RETURN NULL; END $$",
    f"CREATE TRIGGER penstock_outbox_notify AFTER INSERT ON {TABLE} "
    "FOR EACH STATEMENT EXECUTE FUNCTION penstock_outbox_notify()",
)


class CreateOutbox(migrations.CreateModel):
    """Leaves a table alone that is there: a ledger in the same database has one, made by `penstock db upgrade`."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if TABLE in _tables(schema_editor):
            return
        super().database_forwards(app_label, schema_editor, from_state, to_state)
        if schema_editor.connection.vendor == "postgresql":
            for statement in TRIGGER:
                schema_editor.execute(statement)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if "penstock_jobs" in _tables(schema_editor):
            return  # the ledger's
        super().database_backwards(app_label, schema_editor, from_state, to_state)
        if schema_editor.connection.vendor == "postgresql":
            schema_editor.execute("DROP FUNCTION IF EXISTS penstock_outbox_notify()")


def _tables(schema_editor: Any) -> list[str]:
    names: list[str] = schema_editor.connection.introspection.table_names()
    return names


class Migration(migrations.Migration):
    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        CreateOutbox(
            name="OutboxEntry",
            fields=[
                ("position", models.BigAutoField(primary_key=True, serialize=False)),
                ("job_id", models.CharField(db_column="id", max_length=128)),
                ("kind", models.CharField(max_length=128)),
                ("queue", models.CharField(max_length=128)),
                ("priority", models.CharField(max_length=8)),
                ("key", models.CharField(max_length=255, null=True)),
                ("track", models.BooleanField()),
                ("policy", models.TextField(null=True)),
                ("headers", models.TextField()),
                ("body", models.BinaryField()),
                ("created_at", penstock.producers.contrib.django.models.UtcDateTimeField()),
                ("taken_by", models.CharField(max_length=36, null=True)),
                ("taken_until", penstock.producers.contrib.django.models.UtcDateTimeField(null=True)),
            ],
            options={
                "db_table": TABLE,
                "verbose_name_plural": "outbox",
                "indexes": [models.Index(fields=["key", "position"], name="penstock_outbox_key_position")],
            },
        ),
    ]
