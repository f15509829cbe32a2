"""Plain functions, in threads."""

from __future__ import annotations

from django.core.cache import cache
from django.db import transaction

from depot.jobs import CacheInThread, InThread, LeaveOpen
from depot.meeting import meet, server_process
from depot.models import Crate
from penstock.workers import handles


@handles(InThread)
def in_thread(job: InThread) -> int:
    Crate.objects.count()
    meet(job)
    return server_process()


@handles(LeaveOpen)
def leave_open(job: LeaveOpen) -> int:
    transaction.atomic().__enter__()
    return server_process()


@handles(CacheInThread)
def cache_in_thread(job: CacheInThread) -> int:
    cache.set("crates", 7)
    return int(cache.get("crates"))
