"""Loops of gateways and web backends: whatever one meets, it goes on, or its process ends with a reason."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ledgers import upgraded
from support.polling import until, until_async

from penstock.config import supervision
from penstock.producers.handles.redis_listener import RedisListener
from penstock.producers.handles.subscriptions import AsyncSubscriptions, Subscriptions


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    yield
    supervision.on_give_up(None)


def throw_once(monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str) -> list[int]:
    """Let the first start of a loop raise. Returns a list that grows with each start."""
    starts: list[int] = []
    original = getattr(owner, name)

    def body(*arguments: Any) -> Any:
        starts.append(1)
        if len(starts) == 1:
            raise SystemExit("thrown into the loop")
        return original(*arguments)

    monkeypatch.setattr(owner, name, body)
    return starts


def test_subscriptions_of_threads_go_on_after_an_exception(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = throw_once(monkeypatch, Subscriptions, "_run_loop")
    listeners = throw_once(monkeypatch, RedisListener, "_run")
    subscriptions = Subscriptions(redis_url, prefix="p", timeout_seconds=5)
    waiter = subscriptions.subscribe("a job")
    until(lambda: waiter.live)
    assert (len(loops), len(listeners)) == (2, 2)
    subscriptions.close()


def test_subscriptions_of_a_gateway_go_on_after_an_exception_which_is_logged_and_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        listeners = throw_once(monkeypatch, RedisListener, "_run")
        before = supervision.failures["subscriptions"]
        subscriptions = AsyncSubscriptions(redis_url, prefix="p", timeout_seconds=5)
        waiter = subscriptions.subscribe("a job")
        await until_async(lambda: waiter.live)
        assert len(listeners) == 2
        assert supervision.failures["subscriptions"] == before + 1
        subscriptions.unsubscribe(waiter)
        await subscriptions.close()

    asyncio.run(scenario())
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "subscriptions failed with SystemExit and is started again" in caplog.text


GATEWAY = """
import sys
from penstock.config import supervision
from penstock.config.settings import Settings
from penstock.producers.gateway.server import Server, run_gateway

async def main_loop(server):
    if sys.argv[1] == "raise":
        raise SystemExit(0)
    if sys.argv[1] == "give up":
        supervision.give_up("a loop is broken")

Server.main_loop = main_loop
run_gateway(Settings(broker_url=sys.argv[2], database_url=sys.argv[3]), port=0)
"""


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        ("raise", "SystemExit(0) ended the event loop"),
        ("return", "the server ended unasked"),
        ("give up", "a loop is broken"),
    ],
)
def test_a_gateway_that_ends_unasked_fails(leave: str, reason: str, redis_url: str, tmp_path: Path) -> None:
    ledger = upgraded(f"sqlite:///{tmp_path}/ledger.db")  # what it says of a ledger would stand between the lines
    command = [sys.executable, "-c", GATEWAY, leave, redis_url, ledger]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert f"ProcessFailed: {reason}" in ended.stderr
