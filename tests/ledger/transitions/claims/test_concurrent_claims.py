from __future__ import annotations

import threading

from support.ledgers import Note, message, start_worker

from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.claim import Claim, ClaimRequest, claim


def test_jobs_claimed_by_two_workers_are_claimed_once_each(ledger_url: str) -> None:
    sent = [message(Note(text=str(number))) for number in range(200)]
    claims: dict[str, list[str]] = {"w1": [], "w2": []}
    errors: list[Exception] = []
    start = threading.Barrier(2)

    def claim_all(worker: str) -> None:
        database = Database(ledger_url)
        order = sent if worker == "w1" else sent[::-1]  # the worst order for deadlocks
        try:
            start.wait()
            for at in range(0, len(order), 20):
                batch = [ClaimRequest(request, False, 3) for request in order[at : at + 20]]
                answers = claim(database, batch, worker=worker)
                claims[worker] += [answer.message.id for answer in answers if isinstance(answer, Claim)]
        except Exception as error:
            errors.append(error)
        finally:
            database.close()

    # Both are alive: what one has, the other is refused.
    database = Database(ledger_url)
    for name in claims:
        start_worker(database, name)
    threads = [threading.Thread(target=claim_all, args=(name,)) for name in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.close()
    assert errors == []
    assert sorted(claims["w1"] + claims["w2"]) == sorted(job.id for job in sent)
