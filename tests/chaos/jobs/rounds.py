"""A round: jobs of every promise, breakages, and the count of lost and repeated jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from asking import Asking, Call, plan
from auditing import Audit, Report, is_settled
from breaking import Breaker
from chaos_site import Site
from support.polling import SETTLE_SECONDS

THREADS = 3


def run_round(
    site: Site, seed: int, *, count: int, seconds: float = 30.0, first: Sequence[str] = (), wipes: int = 0
) -> Report:
    """Send `count` jobs while things break for `seconds`, repair everything, wait until all is done, and count.

    Half of the jobs are there at once, the others come over four fifths of the time.

    Arguments:
        first: names of what breaks first; see `Breaker`.
        wipes: how often the broker is emptied. Then only jobs that the ledger had on record must end.
    """
    report, began = Report(seed), time.monotonic()
    calls = plan(seed, count)

    def due(number: int) -> float:
        """Half of all at once, the others spread over four fifths of the time."""
        return began + max(number / count - 0.5, 0) * 2 * seconds * 0.8

    site.start()
    breaker = Breaker(site, seed, first=first, wipes=wipes, seconds=seconds)
    breaker.start()
    asking = [Asking(site, share) for share in Asking.share(calls, THREADS)]
    threads = [threading.Thread(target=caller.run, args=(due,), daemon=True) for caller in asking]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and breaker.error is None:
            time.sleep(0.05)
        while time.monotonic() < began + seconds and breaker.error is None:
            time.sleep(0.05)
    finally:
        breaker.stop()
    for caller in asking:
        if caller.error is not None:
            raise caller.error
    report.broken = breaker.done
    site.wait_for_servers()
    settle(site, calls, wiped=wipes > 0)
    frozen = breaker.done["freeze_worker"] > 0
    Audit(site, calls, wiped=wipes > 0, frozen=frozen).into(report)
    report.seconds = time.monotonic() - began
    return report


def settle(site: Site, calls: list[Call], *, wiped: bool = False) -> None:
    """Wait until everything has an end."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        if is_settled(site, calls, wiped=wiped):
            # A duplicate on its way would come now, and untracked jobs that a wiped broker may still hold.
            time.sleep(6.0 if wiped else 1.0)
            if is_settled(site, calls, wiped=wiped):
                return
        site.revive()
        time.sleep(0.5)
