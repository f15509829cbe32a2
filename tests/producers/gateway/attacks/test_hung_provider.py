"""A hung identity provider keeps no one waiting but those who bring a key that is not known yet."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from producers.gateway.test_callers import AUDIENCE, ISSUER, Provider, provider
from support.gateways import Open, problem
from support.polling import WAIT_SECONDS, until

from penstock.producers.gateway.auth import jwks

__all__ = ["provider"]


class Hung:
    """An identity provider that takes connections and never answers."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/jwks.json"
        self.asked = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.asked += 1
            self._open.append(connection)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(WAIT_SECONDS)
        for connection in self._open:
            connection.close()


@pytest.fixture
def hung() -> Iterator[Hung]:
    hung = Hung()
    yield hung
    hung.close()


def test_a_hung_provider_is_asked_once_and_keeps_nobody_else_waiting(
    open_gateway: Open, provider: Provider, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(jwks, "FAILED_SECONDS", 3600.0)
    gateway = open_gateway(jwt={"jwks_url": hung.url, "issuer": ISSUER, "audience": AUDIENCE})
    key, token = gateway.key(), provider.token()
    with ThreadPoolExecutor(40) as threads:
        hanging = [threads.submit(gateway.client.get, "/v1/kinds", headers=token) for _ in range(40)]
        until(lambda: hung.asked, "a fetch")
        for _ in range(20):
            assert gateway.client.get("/v1/kinds", headers=key).status_code == 200
        assert not any(request.done() for request in hanging), "the requests with keys were answered first"
        for request in hanging:
            problem(request.result(), 503, "provider-unavailable")
    problem(gateway.client.get("/v1/kinds", headers=token), 503, "provider-unavailable")
    assert hung.asked == 1


def test_tokens_whose_key_is_known_hold_while_the_provider_is_hung(
    open_gateway: Open, provider: Provider, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FRESH_SECONDS", 0.0)
    gateway = open_gateway(jwt={"jwks_url": provider.url, "issuer": ISSUER, "audience": AUDIENCE})
    token = provider.token()
    assert gateway.client.get("/v1/kinds", headers=token).status_code == 200
    provider.server.shutdown()  # takes connections, and answers none
    for _ in range(5):
        assert gateway.client.get("/v1/kinds", headers=token).status_code == 200
