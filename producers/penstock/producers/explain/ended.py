"""Jobs that have ended, and dead letters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from penstock.producers.explain.case import Case, Explanation
from penstock.producers.explain.wording import present, short, when
from penstock.schemas.states import State


def explain_ended(case: Case) -> Explanation:
    job, state = case.job, State(case.job.state)
    at = when(job.finished_at, case.now)
    why = f" ({short(job.error)})" if job.error else ""
    advice = f"to run it all the same: penstock jobs retry {case.id}"
    if state == State.SUCCEEDED:
        because, advice = f"it succeeded {at}, attempt {job.attempt} on worker {job.worker}", f"{advice} --force"
    elif state == State.CANCELLED and job.unseen:
        because = f"it was cancelled {at} before a worker saw it, or its data was erased"
        advice = f"to see who did so: penstock audit list --subject {case.id}"
    elif state == State.CANCELLED:
        because = f"it was cancelled {at}{why}"
    else:
        because = f"it was discarded {at}{why}"
    return Explanation(case.id, state, because, _times(job), advice)


def explain_dead(case: Case) -> Explanation:
    if case.dead_letter is not None:
        explanation = explain_dead_letter(case)
        return replace(explanation, facts=_times(case.job) | explanation.facts)
    because = f"it is dead since {when(case.job.finished_at, case.now)}: {short(case.job.error)}; its letter is gone"
    return Explanation(
        case.id, State.DEAD, because, _times(case.job), f"to try it again: penstock jobs retry {case.id}"
    )


def explain_dead_letter(case: Case) -> Explanation:
    """Explain a dead letter, of a job or of a message that never became a job."""
    row = case.dead_letter
    names = ("kind", "queue", "reason", "detail", "fingerprint", "created_at", "replayed_at", "discarded_at")
    facts = present({name: getattr(row, name) for name in names})
    because = f"it is dead since {when(row.created_at, case.now)}, {row.reason}: {short(row.detail)}"
    if row.discarded_at is not None:
        because += f"; its letter was discarded {when(row.discarded_at, case.now)}"
        advice = f"to run it all the same: penstock jobs retry {case.id}"
    elif row.replayed_at is not None:
        because += f"; its letter was replayed {when(row.replayed_at, case.now)}"
        advice = f"to see what came of it: penstock audit list --subject {case.id}"
    elif row.reason == "in_doubt":
        advice = (
            f"find out whether it happened, say so with penstock jobs effects {case.id} --confirm KEY or --forget KEY, "
            f"then: penstock deadletters replay {case.id}"
        )
    else:
        advice = (
            f"when the cause is fixed: penstock deadletters replay {case.id}, or all that died of the same: "
            f"penstock deadletters replay --group {row.fingerprint}"
        )
    return Explanation(case.id, State.DEAD, because, facts, advice)


def _times(job: Any) -> dict[str, Any]:
    names = ("worker", "started_at", "finished_at", "error")
    return {name: getattr(job, name) for name in names}
