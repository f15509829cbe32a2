"""Redis with a replica and sentinels: the master dies, the replica takes its place, and workers follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import acme
import outage_jobs
import pytest
from support.polling import WAIT_SECONDS, until
from support.servers.redis_sentinels import RedisSentinels
from support.stack import lines
from test_outages import Site, make_site, marks

from penstock.workers.engines.worker import Worker
from penstock.workers.local.up.redis_server import RedisServer

from test_outages import running as running  # isort: skip  # pytest finds it by its name

pytestmark = pytest.mark.slow


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[RedisSentinels]:
    sentinels = RedisSentinels(tmp_path)
    sentinels.start()
    yield sentinels
    sentinels.stop()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_master_killed_in_the_middle_of_five_hundred_jobs_is_replaced_and_the_rest_is_done(
    engine: str, sentinels: RedisSentinels, tmp_path: Path, running: list[Site]
) -> None:
    file, started = tmp_path / "file", tmp_path / "started"
    site = make_site((engine, "redis"), sentinels.url, tmp_path, running)
    site.start_worker()
    idle = Worker(site.settings, engine=engine, queues=["idle"], concurrency=1)
    idle.start()
    try:
        until(lambda: idle.ready, "a ready worker")
        jobs = [outage_jobs.Effect(number=number, file=str(started), seconds=0.05) for number in range(50)]
        site.producer.enqueue_many([*jobs, *marks(file, 450, seconds=0.1)])
        until(lambda: len(lines(file)) > 50, "some lines")
        sentinels.kill_master()
        assert len(lines(file)) < 450
        until(lambda: not idle.ready, "a worker that says that it does not consume")
        sentinels.wait_for_promotion()
        site.all_succeed(500)
        until(lambda: idle.ready, "a worker that is ready again")
        late = site.producer.enqueue(acme.Mark(file=str(file), text="450"), delay=0.5)
        assert late.wait(WAIT_SECONDS).state == "succeeded"
    finally:
        idle.stop()
    # No worker died, so the deliveries that the promoted server repeats are known to be done, or to be running.
    assert sorted(lines(file), key=int) == [str(number) for number in range(451)]
    assert site.effects() == dict.fromkeys(range(50), 1)
    old: RedisServer = sentinels.master
    assert old.process is None  # all of it without the first master
