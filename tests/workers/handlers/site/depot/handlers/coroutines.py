"""Coroutines: with the asynchronous ORM, and with calls in the threads of `asyncio.to_thread`."""

from __future__ import annotations

import asyncio

from asgiref.sync import sync_to_async
from django.core.cache import cache
from django.db import connection

from depot.jobs import CacheInCoroutine, InCoroutine, InPool, Wait
from depot.meeting import meet, server_process
from depot.models import Crate
from penstock.workers import handles


@handles(InCoroutine)
async def in_coroutine(job: InCoroutine) -> int:
    await Crate.objects.acount()
    await asyncio.to_thread(meet, job)
    return await sync_to_async(server_process)()


@handles(InPool)
async def in_pool(job: InPool) -> int:
    return await asyncio.to_thread(count, job)


def count(job: InPool) -> int:
    Crate.objects.count()
    meet(job)
    return server_process()


@handles(Wait)
async def wait(job: Wait) -> None:
    await sync_to_async(take_lock)(job.lock)


def take_lock(lock: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [lock])


@handles(CacheInCoroutine)
async def cache_in_coroutine(job: CacheInCoroutine) -> int:
    await cache.aset("crates", 7)
    return int(await cache.aget("crates"))
