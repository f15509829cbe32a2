"""A Django project for tests in this process: its databases are added one by one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
import pymysql
import sqlalchemy as sa
from django.conf import settings
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections, models

if not settings.configured:
    pymysql.install_as_MySQLdb()  # type: ignore[no-untyped-call]
    settings.configure(
        INSTALLED_APPS=["penstock.producers.contrib.django", "django_tasks"],
        DATABASES={DEFAULT_DB_ALIAS: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        LOGGING_CONFIG=None,
        SECRET_KEY="only for tests, only for tests",
        # Neither may change the rows that the dispatcher reads.
        USE_TZ=False,
        TIME_ZONE="Asia/Kathmandu",
    )
    django.setup()


class Order(models.Model):
    """A table of the application's own."""

    id = models.IntegerField(primary_key=True)

    class Meta:
        app_label = "shop"
        db_table = "django_orders"


def configuration(url: str) -> dict[str, Any]:
    """The entry in DATABASES for a URL of SQLAlchemy's."""
    parsed = sa.make_url(url)
    engine = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}[parsed.get_backend_name()]
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": parsed.database,
        "USER": parsed.username or "",
        "PASSWORD": parsed.password or "",
        "HOST": parsed.host or "",
        "PORT": str(parsed.port or ""),
    }


@contextmanager
def database(url: str) -> Iterator[str]:
    """Another database of the project's, migrated for Penstock and with the table of orders; its alias."""
    alias = f"shop-{uuid.uuid4().hex[:8]}"
    configured = connections.configure_settings({DEFAULT_DB_ALIAS: {}, alias: configuration(url)})
    connections.databases[alias] = configured[alias]
    try:
        migrate(alias)
        with connections[alias].schema_editor() as editor:
            editor.create_model(Order)
        yield alias
    finally:
        connections[alias].close()
        del connections[alias], connections.databases[alias]


def migrate(alias: str, *arguments: str) -> None:
    call_command("migrate", "penstock", *arguments, database=alias, verbosity=0)
