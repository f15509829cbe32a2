"""The scripts in Redis against a model in plain Python: any order of events."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from workers.limits.clocked_store import INTERVAL, LEASE, ONE, PACED, RULES, TOLERANCE, TWO, Clocked, entry

from penstock.producers.limits.store import (
    LEAD_SECONDS,
    PATIENCE_SECONDS,
    Slot,
    SlotGrant,
    SlotRefusal,
    SlotRequest,
)
from penstock.schemas import Concurrency


class Model(RuleBasedStateMachine):
    """The scripts' behaviour in Python: any order of entries, ends, wake-ups, renewals and pauses."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.store = Clocked(self.url, f"t{uuid.uuid4().hex[:10]}")
        self.store.open()
        self.asked = self.since = self.store.now - LEASE / 2
        self.held: dict[str, dict[str, float]] = {"two:": {}, "one:": {}, "paced:": {}}
        self.next, self.busy = 0.0, False
        self.waited: set[str] = set()
        self.running: dict[str, SlotRequest] = {}
        self.lines: dict[str, list[str]] = {slot: [] for slot in self.held}
        self.slots: dict[str, tuple[Slot, ...]] = {}
        self.starts: list[float] = []
        self.made = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    @rule(slots=st.sampled_from([(TWO,), (ONE,), (PACED,), (TWO, PACED), (PACED, ONE), (ONE, TWO), (TWO, ONE, PACED)]))
    def comes(self, slots: tuple[Slot, ...]) -> None:
        self.made += 1
        self._enter(f"j{self.made}", slots)

    @rule(data=st.data())
    def comes_again(self, data: Any) -> None:
        """Woken or not."""
        if waiting := [job for line in self.lines.values() for job in line] + [
            job for job, slots in self.slots.items() if self._is_woken(job, slots)
        ]:
            job = data.draw(st.sampled_from(waiting))
            for line in self.lines.values():
                if job in line:
                    line.remove(job)
            self._enter(job, self.slots[job])

    @rule(data=st.data())
    def ends(self, data: Any) -> None:
        if self.running:
            job_entry = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
            self.store.release([job_entry])
            for _, slot in job_entry.slots:
                self.held[slot].pop(job_entry.member, None)

    @rule()
    def is_renewed(self) -> None:
        self._heard()
        self.store.renew([], self.running.values())
        self.busy = False
        for job_entry in self.running.values():
            for which, slot in job_entry.slots:
                if isinstance(which.limit, Concurrency):
                    self.held[slot][job_entry.member] = self.store.now + LEASE
                    self.busy = True

    @rule(seconds=st.sampled_from([0.05, 1.0, INTERVAL, 14.0, 25.0, 40.0]))
    def passes(self, seconds: float) -> None:
        self.store.after(seconds)
        self._sweep()

    @rule()
    def dispatches(self) -> None:
        for free in self.store.take_free(10):
            assert free.count == self._free(free.slot), free
            jobs = self.lines[free.slot][: free.count]
            del self.lines[free.slot][: free.count]
            self.store.wake(free, jobs, more=bool(self.lines[free.slot]))
            for job in jobs:
                self.held[free.slot][f"w/{job}"] = self.store.now + LEASE
            if not self.lines[free.slot]:
                self.waited.discard(free.slot)

    @invariant()
    def no_more_than_may_run(self) -> None:
        if not hasattr(self, "store"):
            return
        for use, slot in zip(self.store.uses(list(self.held)), self.held, strict=True):
            members = {member.partition("/")[2] for member in self.held[slot]}
            assert {*use.running, *use.woken} == members, slot
        starts = sorted(self.starts)
        for first, third in zip(starts, starts[2:], strict=False):
            assert third - first >= INTERVAL - 0.001, starts

    def _enter(self, job: str, slots: tuple[Slot, ...]) -> None:
        self.slots[job] = slots
        job_entry = entry(job, *slots)
        expected, start = self._expected(job, slots)
        [answer] = self.store.acquire([job_entry])
        if expected is None:
            assert answer == SlotGrant(pytest.approx(start - self.store.now, abs=0.001))
            for which, slot in slots:
                self.held[slot].pop(f"w/{job}", None)
                if isinstance(which.limit, Concurrency):
                    self.held[slot][job_entry.member] = self.store.now + LEASE
                    self.busy = True
                else:
                    self.next = max(self.next, self.store.now) + INTERVAL
                    self.starts.append(start)
            self.running[job] = job_entry
        else:
            assert answer == SlotRefusal(expected)
            for _, slot in slots:
                self.held[slot].pop(f"w/{job}", None)
            self.waited.add(expected)
            self.lines[expected].append(job)

    def _expected(self, job: str, slots: tuple[Slot, ...]) -> tuple[str | None, float]:
        """The slot that holds it back; else when it starts."""
        self._heard()
        now = start = self.store.now
        woken = self._is_woken(job, slots)
        for which, slot in slots:
            if now < self.since + LEASE / 2 or (slot in self.waited and not woken):
                return slot, 0.0
            if isinstance(which.limit, Concurrency):
                if f"w/{job}" not in self.held[slot] and len(self.held[slot]) >= which.limit.most:
                    return slot, 0.0
            else:
                free = max(self.next, now) - TOLERANCE
                if free > now + (PATIENCE_SECONDS if woken else 0):
                    return slot, 0.0
                start = max(start, free)
        return None, start

    def _free(self, slot: str) -> int:
        limit = RULES[slot[:-1]].limit
        used = len(self.held[slot])
        if isinstance(limit, Concurrency):
            return limit.most - used
        start = max(self.next, self.store.now) - TOLERANCE
        return int((self.store.now + LEAD_SECONDS - start) // INTERVAL) + 1 - used

    def _is_woken(self, job: str, slots: tuple[Slot, ...]) -> bool:
        return any(f"w/{job}" in self.held[slot] for _, slot in slots)

    def _heard(self) -> None:
        if self.store.now - self.asked > LEASE / 2 and self.busy:
            self.since, self.busy = self.store.now, False
        self.asked = self.store.now

    def _sweep(self) -> None:
        for members in self.held.values():
            for member in [member for member, end in members.items() if end <= self.store.now]:
                del members[member]


def test_the_store_behaves_as_the_model(redis_url: str) -> None:
    Model.url = redis_url
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Model,
        settings=settings(max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=checks),
    )
