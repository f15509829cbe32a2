"""Kinds for tests of the gateway, and requests to one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import redis
from pydantic import BaseModel, EmailStr, Field

from penstock.config.settings import Settings
from penstock.ledger.members import api_keys
from penstock.ledger.sql.database import Database
from penstock.producers.senders.redis.sender import lane_key
from penstock.schemas import Job, Sensitive

SECRET = "the secret of these tests"


class Line(BaseModel):
    article: str = Field(min_length=1, max_length=40)
    count: int = Field(ge=1, le=1000)


class Invoice(Job, kind="gateway.invoice", queue="invoices", aliases=("gateway.bill",)):
    """Send one invoice."""

    number: int = Field(ge=0, le=2**53)
    to: EmailStr
    lines: tuple[Line, ...] = ()
    iban: Sensitive[str] = ""


class Sync(Job, kind="gateway.sync", queue="syncs", unique_by=("account",), unique="existing"):
    account: str = Field(max_length=100)


class Only(Job, kind="gateway.only", queue="syncs", unique_by=("account",), unique="reject"):
    account: str = Field(max_length=100)


class Tree(Job, kind="gateway.tree", queue="trees", track=False):
    data: Any = None


INVOICE = {"number": 7, "to": "ada@example.com"}


@dataclass
class Gateway:
    client: httpx.Client
    port: int
    database: Database
    settings: Settings
    stop: Callable[[], None]

    def key(self, **scope: Any) -> dict[str, str]:
        """The header of a new key."""
        text, _made = api_keys.add(self.database, "test", **scope)
        return {"Authorization": f"Bearer {text}"}

    def sent(self, queue: str, priority: str = "normal") -> list[dict[str, Any]]:
        """Messages in the broker: headers, with the job's fields as `payload`."""
        with redis.Redis.from_url(self.settings.broker_url) as client:
            entries: Any = client.xrange(lane_key(self.settings.prefix, queue, priority))  # type: ignore[arg-type]
        return [{**json.loads(entry[b"h"]), "payload": json.loads(entry[b"b"])[1]} for _id, entry in entries]


Open = Callable[..., Gateway]
"""Starts a gateway with these settings of `[gateway]`."""


def problem(response: Any, status: int, name: str) -> dict[str, Any]:
    """The problem that a response must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:penstock:problem:{name}", body
    assert body["status"] == status
    return body
