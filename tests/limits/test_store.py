"""The scripts in Redis, on a clock that the tests set: against a model, and case by case."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from penstock.producers.limits.rules import Rule
from penstock.producers.limits.store import (
    LEAD_SECONDS,
    PATIENCE_SECONDS,
    Entered,
    Entry,
    Free,
    HeldBack,
    LimitStore,
    Place,
)
from penstock.producers.senders.redis.connections import pack
from penstock.schemas import Concurrency, Rate

LEASE = 60.0
LAW = "redis.call('TIME')"


class Clocked(LimitStore):
    """A store whose Redis goes by the clock of the test, in seconds."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(url, prefix=prefix, lease=timedelta(seconds=LEASE), timeout_seconds=10, worker="w1")
        self.now = 0.0
        self.at(1_000_000.0)

    def at(self, now: float) -> None:
        self.now = now
        self._connections.execute(pack("SET", f"{self._base}:clock", round(now * 1e6)))

    def after(self, seconds: float) -> None:
        self.at(self.now + seconds)

    def open(self) -> None:
        """Past the time in which nobody is let in."""
        self.renew([*RULES.values()], [])
        self.after(LEASE / 2)

    def _packed(self, script: str, *arguments: str | int) -> bytes:
        assert LAW in script
        return super()._packed(script.replace(LAW, "{0, redis.call('GET', base .. ':clock')}"), *arguments)


RULES = {
    "two": Rule("two", Concurrency(2)),
    "one": Rule("one", Concurrency(1)),
    "paced": Rule("paced", Rate(2, per=10, burst=2)),
}
TWO, ONE, PACED = ((rule, f"{name}:") for name, rule in RULES.items())
INTERVAL, TOLERANCE = 5.0, 5.0


def entry(job_id: str, *places: Place, fence: int = 1) -> Entry:
    return Entry(job_id, fence, places)


@pytest.fixture
def store(redis_url: str, prefix: str) -> Iterator[Clocked]:
    store = Clocked(redis_url, prefix)
    store.open()
    yield store
    store.close()


def enter(store: LimitStore, *places: Place, job: str = "") -> Entered | HeldBack:
    return store.enter([entry(job or uuid.uuid4().hex, *places)])[0]


def test_a_concurrency_limit_starts_the_next_job_when_one_finishes(store: Clocked) -> None:
    jobs = [entry(str(n), TWO) for n in range(3)]
    assert store.enter(jobs) == [Entered(0), Entered(0), HeldBack("two:")]
    assert store.take(10) == []
    store.leave([jobs[0]])
    [free] = store.take(10)
    assert (free.slot, free.count) == ("two:", 1)
    store.wake(free, ["2"], more=False)
    assert store.enter([jobs[2]]) == [Entered(0)]
    assert store.look(["two:"])[0].running == ("1", "2")


def test_a_later_job_does_not_take_the_slot_of_a_waiting_one(store: Clocked) -> None:
    first, waits = entry("first", ONE), entry("waits", ONE)
    store.enter([first, waits])
    store.leave([first])
    assert enter(store, ONE) == HeldBack("one:")
    store.wake(store.take(10)[0], ["waits"], more=True)
    assert enter(store, ONE) == HeldBack("one:")
    assert store.enter([waits]) == [Entered(0)]


def test_a_killed_worker_has_its_places_for_a_lease_and_a_living_one_for_good(store: Clocked) -> None:
    dead, alive = entry("dead", TWO), entry("alive", TWO)
    store.enter([dead, alive])
    for _ in range(4):
        store.after(LEASE / 4)
        store.renew([], [alive])
    assert store.look(["two:"])[0].running == ("alive",)
    assert enter(store, TWO) == Entered(0)
    assert enter(store, TWO) == HeldBack("two:")


def test_the_end_of_a_lease_wakes_who_waits(store: Clocked) -> None:
    store.enter([entry("dead", ONE), entry("waits", ONE)])
    store.after(LEASE - 1)
    store.renew([], [])
    assert store.take(10) == []
    store.after(1)
    assert [(free.slot, free.count) for free in store.take(10)] == [("one:", 1)]


def test_a_place_that_is_kept_for_a_job_that_never_comes_is_free_after_a_lease(store: Clocked) -> None:
    store.enter([entry("first", ONE), entry("gone", ONE), entry("next", ONE)])
    store.leave([entry("first", ONE)])
    store.wake(store.take(10)[0], ["gone"], more=True)
    assert store.take(10) == []
    store.renew([], [])
    store.after(LEASE)
    [free] = store.take(10)
    assert free.count == 1


def test_a_late_writer_gives_back_nothing_of_the_next_attempt(store: Clocked) -> None:
    late, now = entry("job", ONE, fence=1), entry("job", ONE, fence=2)
    store.enter([late])
    store.renew([], [])
    store.after(LEASE)
    store.renew([], [])
    store.after(LEASE / 2)
    assert store.enter([now]) == [Entered(0)]
    store.leave([late])
    assert store.look(["one:"])[0].running == ("job",)


def test_a_job_that_one_limit_holds_back_has_no_place_under_another(store: Clocked) -> None:
    store.enter([entry("holder", ONE)])
    assert store.enter([entry("both", TWO, ONE)]) == [HeldBack("one:")]
    assert store.look(["two:"])[0].running == ()
    store.enter([entry("a", PACED), entry("b", PACED)])
    assert store.enter([entry("paced", TWO, PACED)]) == [HeldBack("paced:")]
    assert store.look(["two:"])[0].running == ()
    assert store.enter([entry("back", PACED, ONE)]) == [HeldBack("paced:")]


def test_a_woken_job_that_another_limit_holds_back_lets_its_place_go(store: Clocked) -> None:
    store.enter([entry("a", TWO), entry("b", TWO), entry("c", TWO, ONE), entry("holder", ONE)])
    store.leave([entry("a", TWO)])
    store.wake(store.take(10)[0], ["c"], more=True)
    assert store.look(["two:"])[0].woken == ("c",)
    assert store.enter([entry("c", TWO, ONE)]) == [HeldBack("one:")]
    assert store.look(["two:"])[0].woken == ()
    assert [(free.slot, free.count) for free in store.take(10)] == [("two:", 1)]


def test_a_rate_lets_in_a_burst_and_then_one_each_interval(store: Clocked) -> None:
    assert [enter(store, PACED) for _ in range(3)] == [Entered(0), Entered(0), HeldBack("paced:")]
    assert store.take(10) == []
    store.after(INTERVAL - LEAD_SECONDS)
    [free] = store.take(10)
    assert free.count == 1
    store.wake(free, ["w"], more=False)
    assert store.enter([entry("w", PACED)]) == [Entered(pytest.approx(LEAD_SECONDS))]
    assert enter(store, PACED) == HeldBack("paced:")


def test_a_woken_job_waits_in_its_worker_for_no_longer_than_a_moment(store: Clocked) -> None:
    for _ in range(3):
        enter(store, PACED)
    store.wake(Free("paced:", 1, "0"), ["early"], more=True)
    store.after(INTERVAL - PATIENCE_SECONDS - 0.01)
    assert store.enter([entry("early", PACED)]) == [HeldBack("paced:")]


def test_a_rate_wakes_no_job_for_a_slot_that_is_reserved(store: Clocked) -> None:
    for _ in range(4):
        enter(store, PACED)
    store.after(INTERVAL)
    [free] = store.take(10)
    assert free.count == 1
    store.wake(free, ["w"], more=True)
    assert store.take(10) == []
    store.after(INTERVAL - LEAD_SECONDS)
    assert [free.count for free in store.take(10)] == [1]  # its place is kept, and this is the next one


def test_jobs_are_held_back_after_a_silence_until_workers_could_report_what_they_run(store: Clocked) -> None:
    runs = entry("runs", ONE)
    store.enter([runs])
    store.after(2 * LEASE)  # Redis was away, for longer than the lease
    assert enter(store, ONE) == HeldBack("one:")
    store.renew([], [runs])
    store.after(LEASE / 2)
    assert enter(store, ONE) == HeldBack("one:")
    assert store.look(["one:"])[0].running == ("runs",)


def test_jobs_are_held_back_by_an_emptied_redis_until_workers_could_report_what_they_run(store: Clocked) -> None:
    runs = entry("runs", ONE)
    store.enter([runs])
    names = ["", ":since", ":asked", ":busy", ":wakes", ":held:one:"]
    store._connections.execute(pack("DEL", *(f"{store._base}{name}" for name in names)))
    assert enter(store, TWO) == HeldBack("two:")
    store.renew([*RULES.values()], [runs])
    store.after(LEASE / 2)
    assert enter(store, TWO) == HeldBack("two:")  # somebody waits, and comes first
    assert {free.slot: free.count for free in store.take(10)} == {"two:": 2}
    assert enter(store, ONE) == HeldBack("one:")


def test_the_next_job_starts_at_once_after_an_orderly_stop(store: Clocked) -> None:
    store.enter([entry("ran", ONE)])
    store.leave([entry("ran", ONE)])
    store.renew([], [])
    store.after(10 * LEASE)
    assert enter(store, ONE) == Entered(0)


def test_a_slot_is_shown_to_one_dispatcher_at_a_time_and_again_if_that_one_dies(store: Clocked) -> None:
    store.enter([entry("first", ONE), entry("waits", ONE)])
    store.leave([entry("first", ONE)])
    assert len(store.take(10)) == 1
    assert store.take(10) == []
    store.after(5)
    assert len(store.take(10)) == 1


def test_a_job_that_came_while_the_queue_was_read_is_looked_for_again(store: Clocked) -> None:
    store.enter([entry("first", ONE), entry("waits", ONE)])
    store.leave([entry("first", ONE)])
    [free] = store.take(10)
    store.leave([], ["one:"])  # a worker has put another one on record meanwhile
    store.wake(free, [], more=False)
    assert [free.slot for free in store.take(10)] == ["one:"]


def test_waiting_jobs_are_looked_for_although_redis_has_lost_them(store: Clocked) -> None:
    store.expect(["two:", "gone/concurrency:"])
    assert [(free.slot, free.count) for free in store.take(10)] == [("two:", 2)]  # of the other the rule is not known


def test_rules_are_published_for_processes_without_kinds(store: Clocked) -> None:
    rules = store.rules()
    assert {name: rule.text for name, rule in rules.items()} == {
        "two": "2 at a time",
        "one": "1 at a time",
        "paced": "2 per 10 s, 2 at once",
    }
    assert (rules["two"].most, rules["paced"].most) == (2, 0)
    assert rules["paced"].interval == timedelta(seconds=INTERVAL)


class Model(RuleBasedStateMachine):
    """What the scripts should do, said in Python: any order of comings, endings, wakings, renewals and pauses."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.store = Clocked(self.url, f"t{uuid.uuid4().hex[:10]}")
        self.store.open()
        self.asked = self.since = self.store.now - LEASE / 2
        self.held: dict[str, dict[str, float]] = {"two:": {}, "one:": {}, "paced:": {}}
        self.next, self.busy = 0.0, False
        self.waited: set[str] = set()
        self.running: dict[str, Entry] = {}
        self.lines: dict[str, list[str]] = {slot: [] for slot in self.held}
        self.places: dict[str, tuple[Place, ...]] = {}
        self.starts: list[float] = []
        self.made = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    @rule(places=st.sampled_from([(TWO,), (ONE,), (PACED,), (TWO, PACED), (PACED, ONE), (ONE, TWO), (TWO, ONE, PACED)]))
    def comes(self, places: tuple[Place, ...]) -> None:
        self.made += 1
        self._enter(f"j{self.made}", places)

    @rule(data=st.data())
    def comes_again(self, data: Any) -> None:
        """Woken or not."""
        if waiting := [job for line in self.lines.values() for job in line] + [
            job for job, places in self.places.items() if self._is_woken(job, places)
        ]:
            job = data.draw(st.sampled_from(waiting))
            for line in self.lines.values():
                if job in line:
                    line.remove(job)
            self._enter(job, self.places[job])

    @rule(data=st.data())
    def ends(self, data: Any) -> None:
        if self.running:
            job_entry = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
            self.store.leave([job_entry])
            for _, slot in job_entry.places:
                self.held[slot].pop(job_entry.member, None)

    @rule()
    def is_renewed(self) -> None:
        self._heard()
        self.store.renew([], self.running.values())
        self.busy = False
        for job_entry in self.running.values():
            for which, slot in job_entry.places:
                if isinstance(which.limit, Concurrency):
                    self.held[slot][job_entry.member] = self.store.now + LEASE
                    self.busy = True

    @rule(seconds=st.sampled_from([0.05, 1.0, INTERVAL, 14.0, 25.0, 40.0]))
    def passes(self, seconds: float) -> None:
        self.store.after(seconds)
        self._sweep()

    @rule()
    def dispatches(self) -> None:
        for free in self.store.take(10):
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
        for use, slot in zip(self.store.look(list(self.held)), self.held, strict=True):
            members = {member.partition("/")[2] for member in self.held[slot]}
            assert {*use.running, *use.woken} == members, slot
        starts = sorted(self.starts)
        for first, third in zip(starts, starts[2:], strict=False):
            assert third - first >= INTERVAL - 0.001, starts

    def _enter(self, job: str, places: tuple[Place, ...]) -> None:
        self.places[job] = places
        job_entry = entry(job, *places)
        expected, start = self._expected(job, places)
        [answer] = self.store.enter([job_entry])
        if expected is None:
            assert answer == Entered(pytest.approx(start - self.store.now, abs=0.001))
            for which, slot in places:
                self.held[slot].pop(f"w/{job}", None)
                if isinstance(which.limit, Concurrency):
                    self.held[slot][job_entry.member] = self.store.now + LEASE
                    self.busy = True
                else:
                    self.next = max(self.next, self.store.now) + INTERVAL
                    self.starts.append(start)
            self.running[job] = job_entry
        else:
            assert answer == HeldBack(expected)
            for _, slot in places:
                self.held[slot].pop(f"w/{job}", None)
            self.waited.add(expected)
            self.lines[expected].append(job)

    def _expected(self, job: str, places: tuple[Place, ...]) -> tuple[str | None, float]:
        """What holds it back; else when it starts."""
        self._heard()
        now = start = self.store.now
        woken = self._is_woken(job, places)
        for which, slot in places:
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

    def _is_woken(self, job: str, places: tuple[Place, ...]) -> bool:
        return any(f"w/{job}" in self.held[slot] for _, slot in places)

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
