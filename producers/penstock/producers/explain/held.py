"""Jobs that are held back: for workers that know them, as during a rolling deploy, or by the pause of an operator."""

from __future__ import annotations

from dataclasses import replace

from penstock.ledger.members.controls import Control
from penstock.ledger.rows.waits.limit_waits import PAUSED
from penstock.producers.explain.case import COUNTED, NAMED, Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, no_dispatcher, pool_trouble
from penstock.producers.explain.wording import present, short, when
from penstock.schemas.states import State

_NO_HANDLER = ("unknown_kind", "no_handler")


def explain_held(case: Case) -> Explanation:
    job, held = case.job, case.held
    able = [worker.name for worker in case.able(case.roster.consuming(job.queue))]
    facts = {
        "held_back_by": held.worker,
        "reason": held.reason,
        "detail": held.detail,
        "held_since": held.since,
        "held_until": held.until,
        "tried_again_at": held.due_at,
        "with_handler": able[:NAMED],
    }
    because = (
        f"held back for workers that know it: worker {held.worker} does not ({held.reason}: {short(held.detail)}); it "
        f"is tried again until {when(held.until, case.now)}, and then becomes a dead letter"
    )
    trouble, advice = pool_trouble(case, facts)
    if trouble:
        because += f"; {trouble}"
    elif able:
        names = ", ".join(able[:NAMED])
        because += f"; {len(able)} live worker{'' if len(able) == 1 else 's'} of its queue handle {job.kind}: {names}"
        if held.reason == "not_configured":
            advice = f"deploy the penstock.toml that has it to the workers of queue {job.queue!r}"
        elif held.reason not in _NO_HANDLER:
            advice = f"deploy the newer code of {job.kind} to the workers of queue {job.queue!r}"
    if (gone := no_dispatcher(case)) is not None:
        because, advice = f"{because}; and no dispatcher lives to send it again ({gone})", START_DISPATCHER
    return Explanation(case.id, State(job.state), because, facts, advice)


def is_held_by_pause(case: Case) -> bool:
    """Whether the job waits in the ledger for the end of a pause."""
    return case.limit is not None and case.limit[0].startswith(PAUSED)


def explain_held_by_pause(case: Case, before: int) -> Explanation:
    """Explain a job that a worker gave back for a pause."""
    facts = {"waits_before_it": before if before <= COUNTED else "many"}
    trouble, advice = pool_trouble(case, facts)
    because = "it waits in the ledger for the end of the pause"
    if _pause(case, None) is None:
        because = "its pause has ended, and a dispatcher sends it in its turn"
    if before:
        because += f"; {before:,} wait before it" if before <= COUNTED else f"; over {COUNTED:,} wait before it"
    if trouble:
        because += f"; and {trouble}"
    if (gone := no_dispatcher(case)) is not None:
        because, advice = f"{because}; and no dispatcher lives to send it then ({gone})", START_DISPATCHER
    return Explanation(case.id, State.SCHEDULED, because, facts, advice)


def with_pause(case: Case, explanation: Explanation) -> Explanation:
    """The explanation of a job that has not started, after the pause that holds it back, if there is one."""
    pause = _pause(case, explanation.facts.get("queue"))
    if pause is None or explanation.state not in (None, State.SCHEDULED, State.RETRYING, State.QUEUED):
        return explanation
    because, advice = describe_pause(case, pause), resuming(pause)
    facts = {"paused": pause.target, "paused_since": pause.since, "paused_until": pause.until}
    if not case.scope.is_bounded:
        facts |= {"paused_by": pause.actor, "pause_reason": pause.reason}
    if explanation.advice is not None:
        advice = f"{advice}; and {explanation.advice}"
    return replace(
        explanation,
        because=f"{because}; {explanation.because}",
        facts=present(facts) | explanation.facts,
        advice=advice,
    )


def describe_pause(case: Case, pause: Control) -> str:
    """`queue 'reports' is paused by ada since … (the printer burns), until …`; a bounded caller reads no names."""
    names = not case.scope.is_bounded
    by = f" by {short(pause.actor)}" if names else ""
    reason = f" ({short(pause.reason)})" if names and pause.reason else ""
    end = f", until {when(pause.until, case.now)}" if pause.until else ", until it is resumed"
    return f"{pause.target} is paused{by} since {when(pause.since, case.now)}{reason}{end}"


def resuming(pause: Control) -> str:
    """The command that ends a pause."""
    if pause.scope == "all":
        return "penstock resume all"
    return f"penstock {pause.scope}s resume {pause.name}"


def _pause(case: Case, queue: str | None) -> Control | None:
    if case.job is None:
        return None if queue is None else case.controls.pause_of(queue)
    kind = case.kind
    names = {case.job.kind} if kind is None else {case.job.kind, kind.name, *kind.aliases}
    return case.controls.pause_of(case.job.queue, names)
