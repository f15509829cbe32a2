"""Jobs that wait in the ledger: delayed, snoozed, between two attempts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from penstock.ledger.rows.steps import RESTS
from penstock.producers.explain.case import COUNTED, NAMED, Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, no_dispatcher, pool_trouble
from penstock.producers.explain.wording import short, when
from penstock.schemas.states import Outcome, State

_LATE = timedelta(seconds=20)
"""After so long a live dispatcher must be prevented from sending. Longer than a reservation lasts."""


def explain_waiting(case: Case) -> Explanation:
    job = case.job
    facts: dict[str, Any] = {"due_at": job.due_at, "error": job.error}
    because = _for_what(case)
    sending, advice = _sending(case, facts)
    trouble, pool_advice = pool_trouble(case, facts)
    if sending:
        because += f"; {sending}"
    if trouble:
        because += f"; and {trouble}"
    if job.expires_at is not None and job.expires_at <= max(case.due_at, case.now):
        because += f"; it expires {when(job.expires_at, case.now)} and will then be discarded, not run"
    return Explanation(case.id, State(job.state), because, facts, advice or pool_advice)


def explain_workflow(case: Case) -> Explanation:
    """Explain the own job of a workflow, which ends with the last step."""
    state, error = case.workflow
    facts: dict[str, Any] = {"workflow_state": state, "error": error}
    advice = f"penstock workflows show {case.id}"
    because = f"its workflow is {state}, and it ends with the last step"
    if error is not None:
        because = f"its workflow {error}" if error.startswith(RESTS) else f"{because}: {short(error)}"
    if (gone := no_dispatcher(case)) is not None:
        because, advice = f"{because}; and no dispatcher lives to move it on ({gone})", START_DISPATCHER
    return Explanation(case.id, State(case.job.state), because, facts, advice)


def _for_what(case: Case) -> str:
    job, last = case.job, case.last
    due = when(case.due_at, case.now)
    ahead = case.due_at > case.now
    if job.state == State.RETRYING:
        failed = f"attempt {job.attempt} failed ({short(job.error)})"
        return (
            f"{failed}; the next one is in retry until {due}" if ahead else f"{failed}; the next one is due since {due}"
        )
    if last is not None and last.outcome == Outcome.SNOOZED:
        reason = f" ({short(last.error)})" if last.error else ""
        return f"its handler has snoozed it{reason} until {due}"
    if last is not None and last.outcome == Outcome.CRASHED:
        return f"attempt {last.number} crashed ({short(last.error)}); it is due again {due}"
    policy = None if case.kind is None else case.kind.unique
    if case.key is not None and case.key.due_at == job.due_at and policy is not None and policy.quiet is not None:
        return f"it is debounced until {due}, and each further one with its key starts that again"
    return f"it waits for its time, {due}" if ahead else f"its time has come, {due}"


def _sending(case: Case, facts: dict[str, Any]) -> tuple[str, str | None]:
    """The dispatcher that sends the job, or the obstacle; and what to do."""
    facts["dispatchers"] = [member.name for member in case.roster.dispatchers[:NAMED]]
    if (gone := no_dispatcher(case)) is not None:
        return f"no dispatcher lives to send it ({gone})", START_DISPATCHER
    name, overdue = case.roster.dispatchers[0].name, case.now - case.due_at
    if overdue <= timedelta():
        return f"dispatcher {name} sends it then", None
    facts["due_before_it"] = case.earlier if case.earlier <= COUNTED else f"more than {COUNTED}"
    if overdue <= _LATE:
        return f"dispatcher {name} is about to send it", None
    kept = f"dispatcher {name} lives and has not sent it"
    if case.earlier:
        kept += f"; {case.earlier:,} are due before it" if case.earlier <= COUNTED else f"; over {COUNTED:,} go first"
    queue = case.job.queue
    return kept, f"read its log: the broker may be unavailable, or queue {queue!r} full (penstock queues list)"
