"""Jobs whose handlers run in the pool of processes of these tests' workers."""

from __future__ import annotations

import os
import signal

from engine_jobs import QUEUE

from penstock.schemas import Job
from penstock.workers import handles


class Process(Job, kind="engines.process", queue=QUEUE):
    """Returns its process, and ends it before if it is to."""

    ends: bool = False


@handles(Process)
def process(job: Process) -> int:
    if job.ends:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()
