"""The stock Celery application of `peers.celery_app`, adopted: it sends straight to Penstock's queues."""

from __future__ import annotations

from benchmarks.peers.celery_app import app, enqueue
from penstock.producers.contrib.celery import adopt

__all__ = ["connect", "enqueue"]


def connect() -> None:
    adopt(app)
