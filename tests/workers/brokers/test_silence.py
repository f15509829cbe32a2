"""A host that takes connections and never answers, as a broker that hangs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from support.brokers import envelope

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import hosts, open_async_sender, open_sender


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_silent_broker_is_given_up_after_the_timeout(scheme: str, silent_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{silent_port}"

    async def asynchronously() -> None:
        sender = open_async_sender(url, timeout_seconds=0.3)
        with pytest.raises(BrokerUnavailable, match=str(silent_port)):
            await sender.send([envelope()])
        await sender.close()

    sender = open_sender(url, timeout_seconds=0.3)
    with pytest.raises(BrokerUnavailable, match=str(silent_port)):
        sender.send([envelope()])
    sender.close()
    asyncio.run(asynchronously())


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_silent_name_server_is_given_up_after_the_timeout(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def silent(*args: object, **options: object) -> list[object]:
        ended.wait(60)
        return []

    monkeypatch.setattr(hosts.socket, "getaddrinfo", silent)
    with pytest.raises(BrokerUnavailable, match="example"):
        open_sender(f"{scheme}://broker.example", timeout_seconds=0.2).ping()
    ended.set()


def test_threads_that_wait_for_a_silent_broker_fail_together(silent_port: int) -> None:
    sender = open_sender(f"amqp://127.0.0.1:{silent_port}", timeout_seconds=1.0)
    errors: list[BrokerUnavailable] = []

    def send() -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            sender.send([envelope()])
        errors.append(caught.value)

    threads = [threading.Thread(target=send) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)  # one after the other they would take 100 s
    assert len(errors) == 100
