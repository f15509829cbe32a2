"""Kinds that some settings cannot serve, and handlers that are fine by themselves."""

from __future__ import annotations

from penstock.schemas import Job
from penstock.workers import handles


class Long(Job, kind="boot.long", queue="boot-long", timeout=3600): ...


class LongOnce(Job, kind="boot.longmost", queue="boot-most", timeout=3600, delivery="at_most_once"): ...


class Short(Job, kind="boot.short", queue="boot-short", timeout=60): ...


class Endless(Job, kind="boot.endless", queue="boot-endless"): ...


class Paid(Job, kind="boot.paid", queue="boot-paid", delivery="once"): ...


class Single(Job, kind="boot.single", queue="boot-single", unique="reject"): ...


class Loose(Job, kind="boot.loose", queue="boot-loose"): ...


@handles(Long)
async def long(job: Long) -> None: ...


@handles(LongOnce)
async def long_once(job: LongOnce) -> None: ...


@handles(Short)
async def short(job: Short) -> None: ...


@handles(Endless)
async def endless(job: Endless) -> None: ...


@handles(Paid)
async def paid(job: Paid) -> None: ...


@handles(Single)
async def single(job: Single) -> None: ...


@handles(Loose)
async def loose(job: Loose) -> None: ...
