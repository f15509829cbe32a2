"""`python -m workers.executor.attempt.pool.killed_worker FOLDER FILE`: a worker with a pool of two processes, one busy,
until it is killed. Prints their pids."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from penstock.config.settings import Settings
from penstock.workers.engines.inline import Inline

if __name__ == "__main__":
    from workers.executor.attempt.pool.pool_jobs import Plain

    folder, file = sys.argv[1:]
    settings = Settings(database_url=f"sqlite:///{folder}/ledger.db", pool="processes")
    with Inline(settings, queues=["ex"], concurrency=2) as inline:
        inline.producer.enqueue(Plain(case="deaf", file=file))
        while not Path(file).exists():
            time.sleep(0.01)
        pool = inline.worker.executor.attempts.pool
        assert pool is not None
        print(*pool.pids, flush=True)
        time.sleep(3600)
