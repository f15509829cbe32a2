"""Limits with two workers, a dispatcher and a Redis at work, in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from limit_site import Both, Call, Free, One, Paced, Rare, Site
from support.polling import until
from typer.testing import CliRunner
from workers.telemetry.loops import Throwing

from penstock.config.settings import LimitSettings
from penstock.ledger.rows.waits import limit_waits
from penstock.producers.explain import explain
from penstock.schemas import State
from penstock.workers.cli import app
from penstock.workers.executor.limit_gate import LimitGate
from penstock.workers.local.up.redis_server import RedisServer

ONE = "limits.one/concurrency:"


def begin(site: Site, *, until_go: bool = True, seconds: float = 0.0) -> str:
    """A job that has the only slot. Returns its id."""
    [handle] = site.enqueue([One(n=0, until_go=until_go, seconds=seconds)])
    until(lambda: site.book.started, "the first one's begin")
    return handle.id


def until_waiting(site: Site, count: int) -> None:
    until(lambda: limit_waits.counts(site.database).get(ONE) == count, f"{count} to wait")


def test_a_concurrency_limit_runs_the_oldest_first_and_does_not_delay_other_jobs(site: Site) -> None:
    begin(site)
    site.enqueue([One(n=n, seconds=0.01) for n in range(1, 30)])
    site.enqueue([Free(n=n) for n in range(30)])
    until(lambda: site.book.ended == 30, "the jobs without limits")
    until_waiting(site, 29)
    site.book.go = True
    site.until_ended(60)
    assert site.book.most["one"] == 1
    assert [job.n for _, job in site.book.started if isinstance(job, One)] == list(range(30))
    until(lambda: site.states() == {"succeeded": 60}, "the last outcome")
    until(lambda: site.store.uses([ONE])[0].running == (), "the last slot released")
    assert limit_waits.counts(site.database) == {}


def test_jobs_that_a_limit_holds_back_are_counted_as_refused_claims(open_site: Callable[..., Site]) -> None:
    site = open_site(http_port=1).start()  # the port of an engine's process; none is opened here
    begin(site)
    site.enqueue([One(n=n) for n in range(1, 6)])
    until_waiting(site, 5)

    def limited() -> float:
        registries = [worker.registry for worker in site.workers if worker.registry is not None]
        values = [
            registry.get_sample_value("penstock_claims_refused_total", {"reason": "limited"}) for registry in registries
        ]
        return sum(value for value in values if value is not None)

    until(lambda: limited() >= 5, "five refused claims")
    site.book.go = True
    site.until_ended(6)


def test_a_job_is_held_back_about_once_however_many_wait(site: Site) -> None:
    site.enqueue([One(n=n) for n in range(40)])
    site.until_ended(40)
    until(lambda: site.states() == {"succeeded": 40}, "the last outcome")
    # Each claim raises a fence by one: the first one, which held it back, and the one that ran it; few come in vain.
    fences = [site.row(str(handle.id)).fence for handle in site.handles]
    assert sum(fences) <= 3 * 40, fences


def test_tenants_have_the_limit_each_for_itself(site: Site) -> None:
    site.enqueue([Call(n=n, until_go=True) for n in range(40)], tenant="greedy")
    until(lambda: len(site.book.started) == 2, "the greedy one's two")
    site.enqueue([Call(n=100 + n) for n in range(10)], tenant="modest")
    site.until_ended(10)
    assert sorted(job.n for _, job in site.book.started if job.n >= 100) == list(range(100, 110))
    assert site.book.now["call"] == 2
    site.book.go = True
    site.until_ended(50)


def test_a_rate_lets_one_in_each_interval(site: Site) -> None:
    since = time.monotonic()
    site.enqueue([Paced(n=n) for n in range(30)])
    site.until_ended(30)
    # The store's own tests show each window; here a handler begins some time after it was let in, never before.
    early = [n for n, at in enumerate(sorted(at for at, _ in site.book.started)) if at < since + 0.1 * n - 0.01]
    assert not early, site.book.started


def test_a_job_of_several_limits_keeps_to_all(site: Site) -> None:
    site.enqueue([Both(host=host, seconds=0.02) for _ in range(12) for host in ("a", "b")])
    site.until_ended(24)
    assert site.book.most["both"] <= 2
    until(lambda: site.states() == {"succeeded": 24}, "the last outcome")
    until(lambda: not any(slot.startswith("limits.both/") for slot in site.store.used_slots()), "all slots released")


def test_a_limit_of_the_settings_is_over_kinds_together(open_site: Callable[..., Site]) -> None:
    together = LimitSettings(kinds=("limits.free", "limits.one"), concurrency=1)
    site = open_site(limits={"together": together}).start()
    site.enqueue([Free(n=n) for n in range(6)])
    site.enqueue([One(n=n) for n in range(6)])
    site.until_ended(12)
    starts = sorted(at for at, _ in site.book.started)
    assert len(starts) == 12
    until(lambda: site.store.uses(["together/concurrency:"])[0].running == (), "the slots released")


def test_a_job_cancelled_while_it_waits_does_not_block_the_next(site: Site) -> None:
    begin(site)
    crowd = site.enqueue([One(n=n) for n in range(1, 20)])
    last = site.enqueue([One(n=99)])[0]
    until_waiting(site, 20)
    for handle in crowd:
        handle.cancel()
    site.book.go = True
    site.until_ended(2)
    assert [job.n for _, job in site.book.started] == [0, 99]
    assert last.wait(60).state == State.SUCCEEDED


def test_a_job_that_expires_while_it_waits_is_not_run(site: Site) -> None:
    begin(site)
    late = site.enqueue([One(n=1)], expires_in=timedelta(seconds=1))[0]
    until(lambda: site.row(late.id) is not None and site.row(late.id).state == State.DISCARDED, "its discarding")
    assert site.book.ended == 0


def test_an_explanation_says_which_limit_and_who_has_the_places(site: Site) -> None:
    runs = begin(site)
    _, waiting = site.enqueue([One(n=1)])[0], site.enqueue([One(n=2)])[0]
    until_waiting(site, 2)
    explanation = explain(site.database, waiting.id, limits=site.store)
    worker = site.row(runs).worker
    assert explanation.because.startswith(
        f"held by limit limits.one/concurrency: 1 of 1 running: {runs} on {worker}; 1 wait before it"
    )
    assert explanation.facts["running"] == {runs: worker}
    assert explanation.state == State.SCHEDULED
    assert "held by limit limits.one/concurrency" in explain(site.database, waiting.id).because
    site.book.go = True
    site.until_ended(3)


def test_an_explanation_says_when_a_rate_lets_it_in(site: Site) -> None:
    before = datetime.now(UTC)
    site.enqueue([Rare() for _ in range(3)])
    until(lambda: site.book.ended == 1, "the first one's end")
    until(lambda: limit_waits.counts(site.database).get("limits.rare/rate-60s:") == 2, "the others to wait")
    explanations = [explain(site.database, handle.id, limits=site.store) for handle in site.handles]
    [first, last] = sorted(
        (explanation for explanation in explanations if explanation.state == State.SCHEDULED),
        key=lambda explanation: explanation.facts["may_run_at"],
    )
    assert first.because.startswith("held by limit limits.rare/rate-60s: rate, 1 per 60 s reached; it may run 20")
    assert first.facts["may_run_at"] > before + timedelta(seconds=59)
    assert last.facts["may_run_at"] > before + timedelta(seconds=119)


def test_limited_jobs_wait_while_the_store_is_unavailable_and_others_go_on(
    open_site: Callable[..., Site], own_redis: RedisServer
) -> None:
    site = open_site(limits_url=own_redis.url).start()
    site.enqueue([One(n=n, seconds=0.2) for n in range(6)])
    until(lambda: site.book.started, "the first one's begin")
    until(lambda: all(worker.ready for worker in site.workers), "both workers")
    own_redis.kill()
    until(lambda: not any(worker.ready for worker in site.workers), "that no worker is ready")
    site.enqueue([Free(n=n) for n in range(10)])
    late = site.enqueue([One(n=9, seconds=0.2)])[0]
    until(lambda: sum(isinstance(job, Free) for _, job in site.book.started) == 10, "the jobs without limits")
    until(lambda: site.row(late.id) is not None and site.row(late.id).state == State.SCHEDULED, "the late one to wait")
    assert "Redis cannot be asked" in explain(site.database, late.id, limits=site.store).because
    runs = sum(isinstance(job, One) for _, job in site.book.started)
    assert runs < 7
    own_redis.start()
    site.until_ended(17)
    assert site.book.most["one"] == 1
    until(lambda: all(worker.ready for worker in site.workers), "that the workers are ready")


def test_a_store_that_lost_all_lets_no_more_run_than_may(
    open_site: Callable[..., Site], own_redis: RedisServer
) -> None:
    site = open_site(limits_url=own_redis.url).start()
    site.enqueue([One(n=n, seconds=0.3) for n in range(6)])
    until(lambda: site.book.started, "the first one's begin")
    own_redis.kill()
    for file in (own_redis.folder / "appendonly.aof", *own_redis.folder.glob("appendonlydir/*")):
        file.unlink(missing_ok=True)
    own_redis.start()
    site.until_ended(6)
    assert site.book.most["one"] == 1


def test_a_job_that_waits_for_a_worker_that_stops_is_run_by_another(site: Site) -> None:
    site.enqueue([One(n=n, seconds=0.1) for n in range(8)])
    until(lambda: site.book.started, "the first one's begin")
    site.workers.pop().stop()
    site.until_ended(8)
    assert site.book.most["one"] == 1


def test_the_command_line_lists_limits_with_their_use(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(site)
    site.enqueue([One(n=n) for n in range(3)])
    until_waiting(site, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_BROKER_URL", site.settings.broker_url)
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", site.settings.database_url)
    monkeypatch.setenv("PENSTOCK_PREFIX", site.settings.prefix)
    result = CliRunner().invoke(app, ["limits", "--json"])
    rows = {row["limit"]: row for row in json.loads(result.stdout)}
    limit = {"limit": "limits.one/concurrency", "rule": "1 at a time", "set_to": None, "change": None, "share": None}
    assert rows["limits.one/concurrency"] == limit | {"running": 1, "about_to_run": 0, "waiting": 3}
    assert rows["limits.both/rate-1s-by-host"]["rule"] == "20 per 1 s by host"
    explained = CliRunner().invoke(app, ["jobs", "explain", site.handles[-1].id])
    assert "held by limit limits.one/concurrency: 1 of 1 running" in explained.stdout


def test_slots_are_renewed_after_an_exception(open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, LimitGate, "_renew")
    site = open_site()
    site.start()
    begin(site)
    until(lambda: throwing.starts == 1 + len(site.workers))
    site.book.go = True
    site.until_ended(1)
