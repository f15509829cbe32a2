"""The setting `remote_control`, over both engines and brokers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_jobs import QUEUE, Add, Sleep
from running import PAIRS, running
from support.polling import until
from support.servers.shared import broker_url, delete_queues

from penstock.schemas.states import State
from penstock.workers.local.up.redis_server import RedisServer

ORDERS: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 1},
    "pool_restart": {},
    "autoscale": {"max": 3, "min": 1},
    "add_consumer": {"queue": "other"},
    "cancel_consumer": {"queue": QUEUE},
    "rate_limit": {"task_name": "engines.add", "rate_limit": "1/s"},
    "time_limit": {"task_name": "engines.add", "hard": 1},
    "disable_events": {},
    "heartbeat": {},
}


@pytest.fixture(params=PAIRS, ids="-".join)
def restricted(request: pytest.FixtureRequest, redis_server: RedisServer, prefix: str, tmp_path: Path) -> Iterator[Any]:
    engine, broker = request.param

    def start(mode: str) -> Any:
        return running(
            engine, broker_url(broker, redis_server), prefix, tmp_path, environment={"PENSTOCK_REMOTE_CONTROL": mode}
        )

    yield start
    delete_queues(broker, prefix)


def test_a_worker_for_inspection_only_answers_and_takes_no_orders(restricted: Any) -> None:
    with restricted("inspect") as worker:
        assert worker.ask("ping") == {"ok": "pong"}
        assert "engines.add" in worker.ask("registered")
        assert worker.ask("active_queues")[0]["name"] == QUEUE
        assert worker.ask("enable_events") == {"ok": "task events enabled"}
        assert "broker_url" in worker.ask("conf")

        handle = worker.producer.enqueue(Sleep(seconds=300))
        until(lambda: handle.id in worker.active(), "the running job")
        orders = ORDERS | {
            "revoke": {"task_id": handle.id, "terminate": True},
            "terminate": {"signal": "KILL", "task_id": handle.id},
        }
        for command, arguments in orders.items():
            assert 'remote_control = "inspect"' in worker.ask(command, **arguments)["error"]

        assert handle.id in worker.active()
        assert handle.status().state is State.RUNNING
        stats = worker.ask("stats")
        assert stats["pool"]["max-concurrency"] == 5
        assert stats["faults"]["remote control refused"] >= len(orders)
        assert "remote control refused" in worker.log.read_text()
        handle.cancel()
        until(lambda: handle.status().state is State.CANCELLED, "the cancellation")


def test_a_worker_without_remote_control_hears_nothing(restricted: Any) -> None:
    with restricted("off") as worker:
        for command in ("ping", "shutdown"):
            replies = worker.client.control.broadcast(command, destination=[worker.name], reply=True, timeout=3)
            assert replies == []
        assert worker.process.poll() is None
        assert worker.producer.enqueue(Add(a=1)).result(timeout=60) == 2
