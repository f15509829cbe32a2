"""The app's handlers."""

from __future__ import annotations

from depot.jobs import Lend

from penstock.workers import handles


@handles(Lend)
def lend(job: Lend) -> str:
    return "lent"
