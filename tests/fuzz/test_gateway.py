"""The gateway does not grow under generated requests, and answers none with a 5xx; `make fuzz` goes on for longer."""

from __future__ import annotations

from pathlib import Path

from fuzz.gateway import GROWTH, gateway_process

from penstock.workers.local.up.redis_server import RedisServer


def test_generated_requests_neither_break_the_gateway_nor_fill_it(redis_server: RedisServer, tmp_path: Path) -> None:
    with gateway_process(tmp_path, redis_server) as gateway:
        gateway.fuzz(examples=1)
        before = gateway.memory()
        gateway.fuzz(examples=3)
        assert gateway.memory() - before < GROWTH
