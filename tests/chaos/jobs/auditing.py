"""The audit of a round: enqueued jobs against their effects."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asking import UNIQUE, Call
from chaos_jobs import CHILD, Charge, ChargeUnasked, Debounce, Once, OnceThread, Parent, Replace
from chaos_site import Site

from penstock.schemas.states import FINAL, State

SHOWN = 8


@dataclass
class Line:
    """A row of the table, of a kind: how many calls asked for it, how many jobs that makes, what became of them.

    Attributes:
        ran: jobs with an effect. again: effects of a job beyond its first.
        none: jobs that ended without an effect, as asked or as promised. unrecorded: lost with a wiped broker.
    """

    calls: int = 0
    jobs: int = 0
    ran: int = 0
    again: int = 0
    none: int = 0
    lost: int = 0
    unrecorded: int = 0


@dataclass
class Report:
    """Result of a round. `faults` is empty if every promise was kept."""

    seed: int
    lines_of: dict[str, Line] = field(default_factory=lambda: defaultdict(Line))
    broken: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        names = ("calls", "jobs", "ran", "again", "none", "lost", "unrecorded")
        rows = [f"  seed {self.seed:<23}" + "".join(f"{name:>11}" for name in names)]
        total = Line()
        for kind, line in sorted(self.lines_of.items()):
            rows.append(f"  {kind:<28}" + "".join(f"{getattr(line, name):>11}" for name in names))
            for name in names:
                setattr(total, name, getattr(total, name) + getattr(line, name))
        rows.append(f"  {'all':<28}" + "".join(f"{getattr(total, name):>11}" for name in names))
        rows.append("  " + ", ".join(f"{name} x{count}" for name, count in sorted(self.broken.items())))
        return rows + [f"  FAULT {fault}" for fault in self.faults]


class Audit:
    """Compares the data of a site at the end with the calls, and collects the faults.

    Arguments:
        wiped: the broker was emptied, so what no ledger has recorded may be gone.
        frozen: a worker was suspended, so that two of them may have been at one effect.
    """

    def __init__(self, site: Site, calls: Sequence[Call], *, wiped: bool, frozen: bool) -> None:
        self._asked, self._wiped, self._frozen = calls, wiped, frozen
        self._traces, self._effects, self._charges = site.traces(), site.effects(), site.charges()
        self._rows, self._letters = site.rows(), site.letters()
        self._faults: dict[str, list[str]] = defaultdict(list)

    def into(self, report: Report) -> None:
        for call in self._asked:
            line = report.lines_of[call.job.kind().name]
            line.calls += 1
            if call.created:
                line.jobs += 1
                self._judge(call, line)
        self._judge_children(report.lines_of["chaos.once (of a parent)"])
        self._judge_uniques()
        ids = {call.id for call in self._asked}
        for job_id, row in self._rows.items():
            if row.state not in FINAL:
                self._fault("without an end", row.kind, f"{job_id} ({row.state})")
            if job_id not in ids and json.loads(row.payload)["number"] < CHILD:
                self._fault("that was never enqueued", row.kind, f"{job_id} ({row.state})")
        for fault, labels in sorted(self._faults.items()):
            more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
            report.faults.append(f"{len(labels)} {fault}: {', '.join(labels[:SHOWN])}{more}")

    def _judge(self, call: Call, line: Line) -> None:
        kind, row, reason = call.job.kind(), self._rows.get(call.id), self._letters.get(call.id)
        state = None if row is None else row.state
        count, label = self._count(call), f"{call.number} ({call.id}, {state})"
        line.ran += count > 0
        line.again += max(count - 1, 0)
        may_not = call.cancel is not None or isinstance(call.job, (*UNIQUE, ChargeUnasked))
        if count == 0 and row is None and self._wiped and not isinstance(call.job, UNIQUE):
            line.unrecorded += 1
            return
        if count == 0 and not may_not and kind.delivery != "at_most_once":
            line.lost += 1
            self._fault("lost", kind.name, label)
        elif count == 0:
            line.none += 1
        once = kind.delivery != "at_least_once" or isinstance(call.job, ChargeUnasked)
        if count > 1 and once and not (isinstance(call.job, Charge) and self._frozen):
            self._fault("repeated", kind.name, label)
        if isinstance(call.job, Charge) and len(self._charges[call.number]) > 1:
            self._fault("charged under several keys", kind.name, label)
        if kind.track and row is None and not self._wiped:
            self._fault("not recorded", kind.name, label)
        self._judge_state(call, state, count, reason, label)

    def _judge_state(self, call: Call, state: str | None, count: int, reason: str | None, label: str) -> None:
        kind = call.job.kind()
        if call.cancel is not None:
            if call.certain and (count or state not in (State.CANCELLED, None)):
                self._fault("ran though it was cancelled before", kind.name, label)
            if state == State.CANCELLED and count and kind.delivery == "once":
                self._fault("has an effect though it is cancelled", kind.name, label)
            if state not in (State.CANCELLED, State.SUCCEEDED, None):
                self._fault("neither cancelled nor done", kind.name, label)
        elif isinstance(call.job, ChargeUnasked):
            if state == State.DEAD and reason != "in_doubt":
                self._fault(f"a dead letter ({reason})", kind.name, label)
            if state == State.SUCCEEDED and count != 1:
                self._fault("done without its charge", kind.name, label)
            if state not in (State.DEAD, State.SUCCEEDED):
                self._fault("not recorded as done", kind.name, label)
        elif isinstance(call.job, (Replace, Debounce)):
            error = self._rows[call.id].error or "" if call.id in self._rows else ""
            if state != State.SUCCEEDED and not (state == State.CANCELLED and error.startswith("replaced by job ")):
                self._fault("neither done nor replaced", kind.name, label)
            if state == State.CANCELLED and count:
                self._fault("ran though it was replaced", kind.name, label)
        elif kind.track and kind.delivery != "at_most_once" and state != State.SUCCEEDED:
            self._fault("not recorded as succeeded", kind.name, label)
        elif kind.delivery != "at_most_once" and reason is not None:
            self._fault(f"a dead letter ({reason})", kind.name, label)

    def _count(self, call: Call) -> int:
        if isinstance(call.job, (Once, OnceThread, Parent)):
            return self._effects[call.number]
        if isinstance(call.job, (Charge, ChargeUnasked)):
            return sum(self._charges[call.number])
        if isinstance(call.job, Debounce):  # put off, it leaves the trace of a later call
            return sum(ids.count(call.id) for ids in self._traces.values())
        return len(self._traces.get(call.number, ()))

    def _judge_children(self, line: Line) -> None:
        """Children of a parent exist if the parent succeeded, and only then."""
        for call in self._asked:
            if isinstance(call.job, Parent):
                count, done = self._effects[CHILD + call.number], self._effects[call.number]
                label = f"{call.number} ({call.id})"
                line.calls += 1
                line.jobs += done
                line.ran += count > 0
                line.again += max(count - 1, 0)
                line.lost += count < done
                if count != done:
                    self._fault(f"{count} children", call.job.kind().name, label)

    def _judge_uniques(self) -> None:
        groups: Mapping[tuple[type, int], list[Call]] = defaultdict(list)
        for call in self._asked:
            if isinstance(call.job, UNIQUE):
                groups[type(call.job), call.job.about].append(call)
        for (kind, about), calls in groups.items():
            label = f"about {about}"
            own = {call.id: call for call in calls if call.created}
            for call in calls:
                if call.answered_id is not None and call.answered_id not in own:
                    self._fault("stands for a call of another key", kind.__name__, f"{call.answered_id}, {label}")
            if kind in (Replace, Debounce):
                self._judge_latest(kind, calls, label)
            else:
                self._judge_holders(kind, list(own.values()), label)

    def _judge_latest(self, kind: type, calls: list[Call], label: str) -> None:
        """The last call's payload runs, and a debounced job with no other payload than the last it was given."""
        last = calls[-1]
        if not self._traces.get(last.number):
            self._fault("lost its last call", kind.__name__, f"{last.number} ({last.answered_id}), {label}")
        latest = {call.answered_id: call.number for call in calls}  # the latest of each
        for call in calls:
            for job_id in self._traces.get(call.number, ()):
                if latest.get(job_id) != call.number:
                    self._fault("ran with a payload of before", kind.__name__, f"{call.number} ({job_id}), {label}")

    def _judge_holders(self, kind: type, holders: list[Call], label: str) -> None:
        """A job was let in only when the one before had ended."""
        holders.sort(key=lambda call: call.ended)
        for number, call in enumerate(holders):
            row = self._rows.get(call.id)
            for other in holders[number + 1 :]:
                # Let in while the other's call was under way at the latest; which of two was first, neither knows.
                if row is None or row.finished_at is None or other.ended < row.finished_at.timestamp():
                    theirs: Any = self._rows.get(other.id)
                    ended = None if theirs is None or theirs.finished_at is None else theirs.finished_at.timestamp()
                    if ended is None or call.ended < ended:
                        self._fault("held one key at a time", kind.__name__, f"{call.id} and {other.id}, {label}")

    def _fault(self, what: str, kind: str, label: str) -> None:
        self._faults[f"{kind} {what}"].append(label)


def is_settled(site: Site, calls: Sequence[Call], *, wiped: bool) -> bool:
    """Whether the ledger knows of nothing more to come, and what must happen has happened."""
    if site.unfinished():
        return False
    if wiped:
        return True
    rows, traces = site.rows(), site.traces()
    return all(
        call.id in rows if call.job.kind().track else call.number in traces or call.cancel is not None
        for call in calls
        if call.created
    )
