"""Django: jobs in the transaction of the ORM, and what a project needs around its producer.

    INSTALLED_APPS = [..., "penstock.producers.contrib.django"]
    MIDDLEWARE = ["penstock.producers.contrib.django.traces", ...]
    urlpatterns = [..., path("penstock/", include("penstock.producers.contrib.django.urls"))]

`manage.py migrate penstock` makes the outbox's table.
"""

from penstock.producers.contrib.django.outbox import Outbox
from penstock.producers.contrib.django.running import (
    async_producer,
    enqueue_on_commit,
    events_path,
    producer,
    traces,
)

__all__ = ["Outbox", "async_producer", "enqueue_on_commit", "events_path", "producer", "traces"]
