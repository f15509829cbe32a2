"""The scripts in Redis, on a clock that the tests set, case by case."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from workers.limits.clocked_store import INTERVAL, LEASE, ONE, PACED, RULES, TWO, Clocked, entry

from penstock.producers.limits.store import (
    LEAD_SECONDS,
    PATIENCE_SECONDS,
    FreeSlot,
    LimitStore,
    Slot,
    SlotGrant,
    SlotRefusal,
)
from penstock.producers.senders.redis.protocol import pack


def enter(store: LimitStore, *slots: Slot, job: str = "") -> SlotGrant | SlotRefusal:
    return store.acquire([entry(job or uuid.uuid4().hex, *slots)])[0]


def test_a_concurrency_limit_starts_the_next_job_when_one_finishes(store: Clocked) -> None:
    jobs = [entry(str(n), TWO) for n in range(3)]
    assert store.acquire(jobs) == [SlotGrant(0), SlotGrant(0), SlotRefusal("two:")]
    assert store.take_free(10) == []
    store.release([jobs[0]])
    [free] = store.take_free(10)
    assert (free.slot, free.count) == ("two:", 1)
    store.wake(free, ["2"], more=False)
    assert store.acquire([jobs[2]]) == [SlotGrant(0)]
    assert store.uses(["two:"])[0].running == ("1", "2")


def test_a_later_job_does_not_take_the_slot_of_a_waiting_one(store: Clocked) -> None:
    first, waits = entry("first", ONE), entry("waits", ONE)
    store.acquire([first, waits])
    store.release([first])
    assert enter(store, ONE) == SlotRefusal("one:")
    store.wake(store.take_free(10)[0], ["waits"], more=True)
    assert enter(store, ONE) == SlotRefusal("one:")
    assert store.acquire([waits]) == [SlotGrant(0)]


def test_a_killed_worker_has_its_places_for_a_lease_and_a_living_one_for_good(store: Clocked) -> None:
    dead, alive = entry("dead", TWO), entry("alive", TWO)
    store.acquire([dead, alive])
    for _ in range(4):
        store.after(LEASE / 4)
        store.renew([], [alive])
    assert store.uses(["two:"])[0].running == ("alive",)
    assert enter(store, TWO) == SlotGrant(0)
    assert enter(store, TWO) == SlotRefusal("two:")


def test_the_end_of_a_lease_wakes_who_waits(store: Clocked) -> None:
    store.acquire([entry("dead", ONE), entry("waits", ONE)])
    store.after(LEASE - 1)
    store.renew([], [])
    assert store.take_free(10) == []
    store.after(1)
    assert [(free.slot, free.count) for free in store.take_free(10)] == [("one:", 1)]


def test_a_place_that_is_kept_for_a_job_that_never_comes_is_free_after_a_lease(store: Clocked) -> None:
    store.acquire([entry("first", ONE), entry("gone", ONE), entry("next", ONE)])
    store.release([entry("first", ONE)])
    store.wake(store.take_free(10)[0], ["gone"], more=True)
    assert store.take_free(10) == []
    store.renew([], [])
    store.after(LEASE)
    [free] = store.take_free(10)
    assert free.count == 1


def test_a_late_writer_gives_back_nothing_of_the_next_attempt(store: Clocked) -> None:
    late, now = entry("job", ONE, fence=1), entry("job", ONE, fence=2)
    store.acquire([late])
    store.renew([], [])
    store.after(LEASE)
    store.renew([], [])
    store.after(LEASE / 2)
    assert store.acquire([now]) == [SlotGrant(0)]
    store.release([late])
    assert store.uses(["one:"])[0].running == ("job",)


def test_a_job_that_one_limit_holds_back_has_no_place_under_another(store: Clocked) -> None:
    store.acquire([entry("holder", ONE)])
    assert store.acquire([entry("both", TWO, ONE)]) == [SlotRefusal("one:")]
    assert store.uses(["two:"])[0].running == ()
    store.acquire([entry("a", PACED), entry("b", PACED)])
    assert store.acquire([entry("paced", TWO, PACED)]) == [SlotRefusal("paced:")]
    assert store.uses(["two:"])[0].running == ()
    assert store.acquire([entry("back", PACED, ONE)]) == [SlotRefusal("paced:")]


def test_a_woken_job_that_another_limit_holds_back_lets_its_place_go(store: Clocked) -> None:
    store.acquire([entry("a", TWO), entry("b", TWO), entry("c", TWO, ONE), entry("holder", ONE)])
    store.release([entry("a", TWO)])
    store.wake(store.take_free(10)[0], ["c"], more=True)
    assert store.uses(["two:"])[0].woken == ("c",)
    assert store.acquire([entry("c", TWO, ONE)]) == [SlotRefusal("one:")]
    assert store.uses(["two:"])[0].woken == ()
    assert [(free.slot, free.count) for free in store.take_free(10)] == [("two:", 1)]


def test_a_rate_lets_in_a_burst_and_then_one_each_interval(store: Clocked) -> None:
    assert [enter(store, PACED) for _ in range(3)] == [SlotGrant(0), SlotGrant(0), SlotRefusal("paced:")]
    assert store.take_free(10) == []
    store.after(INTERVAL - LEAD_SECONDS)
    [free] = store.take_free(10)
    assert free.count == 1
    store.wake(free, ["w"], more=False)
    assert store.acquire([entry("w", PACED)]) == [SlotGrant(pytest.approx(LEAD_SECONDS))]
    assert enter(store, PACED) == SlotRefusal("paced:")


def test_a_woken_job_waits_in_its_worker_for_no_longer_than_a_moment(store: Clocked) -> None:
    for _ in range(3):
        enter(store, PACED)
    store.wake(FreeSlot("paced:", 1, "0"), ["early"], more=True)
    store.after(INTERVAL - PATIENCE_SECONDS - 0.01)
    assert store.acquire([entry("early", PACED)]) == [SlotRefusal("paced:")]


def test_a_rate_wakes_no_job_for_a_slot_that_is_reserved(store: Clocked) -> None:
    for _ in range(4):
        enter(store, PACED)
    store.after(INTERVAL)
    [free] = store.take_free(10)
    assert free.count == 1
    store.wake(free, ["w"], more=True)
    assert store.take_free(10) == []
    store.after(INTERVAL - LEAD_SECONDS)
    assert [free.count for free in store.take_free(10)] == [1]  # its slot is kept, and this is the next one


def test_jobs_are_held_back_after_a_silence_until_workers_could_report_what_they_run(store: Clocked) -> None:
    runs = entry("runs", ONE)
    store.acquire([runs])
    store.after(2 * LEASE)  # Redis was down for longer than the lease
    assert enter(store, ONE) == SlotRefusal("one:")
    store.renew([], [runs])
    store.after(LEASE / 2)
    assert enter(store, ONE) == SlotRefusal("one:")
    assert store.uses(["one:"])[0].running == ("runs",)


def test_jobs_are_held_back_by_an_emptied_redis_until_workers_could_report_what_they_run(store: Clocked) -> None:
    runs = entry("runs", ONE)
    store.acquire([runs])
    names = ["", ":since", ":asked", ":busy", ":wakes", ":held:one:"]
    store._connections.execute(pack("DEL", *(f"{store._base}{name}" for name in names)))
    assert enter(store, TWO) == SlotRefusal("two:")
    store.renew([*RULES.values()], [runs])
    store.after(LEASE / 2)
    assert enter(store, TWO) == SlotRefusal("two:")  # a job waits, and comes first
    assert {free.slot: free.count for free in store.take_free(10)} == {"two:": 2}
    assert enter(store, ONE) == SlotRefusal("one:")


def test_the_next_job_starts_at_once_after_an_orderly_stop(store: Clocked) -> None:
    store.acquire([entry("ran", ONE)])
    store.release([entry("ran", ONE)])
    store.renew([], [])
    store.after(10 * LEASE)
    assert enter(store, ONE) == SlotGrant(0)


def test_a_slot_is_shown_to_one_dispatcher_at_a_time_and_again_if_that_one_dies(store: Clocked) -> None:
    store.acquire([entry("first", ONE), entry("waits", ONE)])
    store.release([entry("first", ONE)])
    assert len(store.take_free(10)) == 1
    assert store.take_free(10) == []
    store.after(5)
    assert len(store.take_free(10)) == 1


def test_a_job_that_came_while_the_queue_was_read_is_looked_for_again(store: Clocked) -> None:
    store.acquire([entry("first", ONE), entry("waits", ONE)])
    store.release([entry("first", ONE)])
    [free] = store.take_free(10)
    store.release([], ["one:"])  # a worker has put another one on record meanwhile
    store.wake(free, [], more=False)
    assert [free.slot for free in store.take_free(10)] == ["one:"]


def test_waiting_jobs_are_looked_for_although_redis_has_lost_them(store: Clocked) -> None:
    store.mark_wanted(["two:", "gone/concurrency:"])
    assert [(free.slot, free.count) for free in store.take_free(10)] == [
        ("two:", 2)
    ]  # of the other the rule is not known


def test_rules_are_published_for_processes_without_kinds(store: Clocked) -> None:
    rules = store.rules()
    assert {name: rule.text for name, rule in rules.items()} == {
        "two": "2 at a time",
        "one": "1 at a time",
        "paced": "2 per 10 s, 2 at once",
    }
    assert (rules["two"].most, rules["paced"].most) == (2, 0)
    assert rules["paced"].interval == timedelta(seconds=INTERVAL)
