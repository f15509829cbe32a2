"""Isolated functions, in processes of their own."""

from __future__ import annotations

from depot.jobs import InChild
from depot.meeting import server_process
from depot.models import Crate
from penstock.workers import handles


@handles(InChild, isolate=True)
def in_child(job: InChild) -> int:
    Crate.objects.count()
    return server_process()
