"""Jobs that run at the same time, and the process that serves their connection."""

from __future__ import annotations

import threading

from django.db import connection

from depot.jobs import Count

SECONDS = 60.0

_barriers: dict[str, threading.Barrier] = {}
_making = threading.Lock()


def meet(job: Count) -> None:
    """Wait for the other jobs of this one's name."""
    with _making:
        barrier = _barriers.setdefault(job.name, threading.Barrier(job.others + 1))
    barrier.wait(SECONDS)


def server_process() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])
