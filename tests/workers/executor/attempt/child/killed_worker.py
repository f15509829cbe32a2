"""`python -m workers.executor.attempt.child.killed_worker FOLDER FILE`: a worker with a child, until it is killed."""

from __future__ import annotations

import sys
import time

from penstock.config.settings import Settings
from penstock.workers.engines.inline import Inline

if __name__ == "__main__":
    from workers.executor.attempt.child.isolated_jobs import Patient

    folder, file = sys.argv[1:]
    with Inline(Settings(database_url=f"sqlite:///{folder}/ledger.db"), queues=["ex"]) as inline:
        inline.producer.enqueue(Patient(case="deaf_family", file=file))
        time.sleep(3600)
