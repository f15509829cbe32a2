"""The gateway's tables in the ledger's database, on the servers; all other tests use SQLite."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support.ledgers import set_up, temporary_database
from support.servers.shared import SERVERS, need

from penstock.ledger.members import api_keys
from penstock.ledger.sql.database import Database
from penstock.producers.gateway.problems import Problem
from penstock.producers.gateway.requests.idempotency import IdempotencyKeys


@pytest.mark.parametrize("server", ["PostgreSQL", "MariaDB"])
def test_keys_and_repeated_requests_are_kept(server: str) -> None:
    need(server)
    with temporary_database(SERVERS[server]) as url:
        database = Database(set_up(url))
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        text, key = api_keys.add(database, "shop", kinds=["invoice.*"], tenants=["acme"], expires_at=expires_at)
        assert api_keys.find(database, text) == key
        assert api_keys.every(database) == [key]
        assert not api_keys.revoke(database, key.id).holds(datetime.now(UTC))

        async def ask() -> None:
            idempotency_keys = IdempotencyKeys(database)
            first = await idempotency_keys.start("key:1", "one", [b"a"], ["x"])
            with pytest.raises(Problem, match="under way"):
                await idempotency_keys.start("key:1", "one", [b"a"], ["y"])
            await idempotency_keys.abort(first)
            assert (await idempotency_keys.start("key:1", "one", [b"a"], ["y"])).job_ids == ["x"]
            await idempotency_keys.complete(first, 202, b"{}")
            assert (await idempotency_keys.start("key:1", "one", [b"a"], ["y"])).answer == (202, b"{}")
            with pytest.raises(Problem, match="another request"):
                await idempotency_keys.start("key:1", "one", [b"b"], ["y"])

        asyncio.run(ask())
        database.close()
