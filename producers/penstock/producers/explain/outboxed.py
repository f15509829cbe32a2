"""Jobs in the outbox of the ledger's database, which no dispatcher has sent yet."""

from __future__ import annotations

from typing import Any

from penstock.producers.explain.case import Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, no_dispatcher
from penstock.producers.explain.wording import present, when
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE


def explain_outboxed(case: Case) -> Explanation:
    row = case.outbox
    queue = row.queue if row.queue != DISPATCHER_QUEUE else None
    facts: dict[str, Any] = {"kind": row.kind, "queue": queue, "priority": row.priority, "key": row.key}
    facts |= {"enqueued_at": row.created_at, "earlier_in_outbox": row.earlier, "earlier_of_its_key": row.of_its_key}
    because = f"it waits in the outbox, written {when(row.created_at, case.now)}"
    if (gone := no_dispatcher(case)) is not None:
        return Explanation(
            case.id, None, f"{because}; no dispatcher lives to send it ({gone})", present(facts), START_DISPATCHER
        )
    if row.taken_until is not None and row.taken_until > case.now:
        return Explanation(case.id, None, f"{because}; a dispatcher is sending it", present(facts))
    if row.of_its_key:
        because += f", behind {row.of_its_key:,} of its key, whose order is kept"
    elif row.earlier:
        because += f", behind {row.earlier:,} others"
    advice = (
        "it is sent within a second unless the broker is unavailable or its queue is at max_length; "
        "then the dispatcher's log says so"
    )
    return Explanation(case.id, None, because, present(facts), advice)
