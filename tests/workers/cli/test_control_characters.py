"""Control characters in what a stranger has sent: no command prints them raw."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.config.settings import load_settings
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.bury import bury_message
from penstock.schemas.wire.codec import Envelope

EVIL = "\x1b]0;owned\x07\nforged\x9b"
ESCAPED = "\\x1b]0;owned\\x07\\nforged\\x9b"

COMMANDS = (
    ("deadletters", "list"),
    ("deadletters", "groups"),
    ("deadletters", "show", EVIL),
    ("deadletters", "replay", EVIL),
    ("deadletters", "discard", EVIL, "--reason", "forged", "--actor", EVIL),
    ("audit", "list"),
    ("jobs", "list"),
    ("jobs", "show", EVIL),
    ("jobs", "show", EVIL + "waits"),
    ("jobs", "explain", EVIL),
    ("jobs", "explain", EVIL + "waits"),
    ("jobs", "cancel", EVIL + "waits"),
    ("jobs", "retry", EVIL),
    ("queues", "list"),
)


@pytest.fixture
def forged(ledger: Any, workplace: Path) -> None:
    database = Database(load_settings().database_url)
    headers = {"task": EVIL, "id": EVIL, "penstock": {"key": EVIL, "tenant": EVIL}}
    bury_message(database, Envelope("ex", "normal", headers, b"[[],{},null]"), b"", "unknown_kind", f"no kind {EVIL}")
    waiting = {"task": EVIL, "id": EVIL + "waits", "eta": datetime.now(UTC).isoformat(), "penstock": {"key": EVIL}}
    due.schedule(database, [Envelope("ex", "normal", waiting, b"[[],{},null]")])
    database.close()


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(command[:2]) for command in COMMANDS])
def test_no_command_prints_control_characters(
    forged: None, penstock: Callable[..., Any], command: tuple[str, ...]
) -> None:
    result = penstock(*command)
    for text in (result.out, result.err):
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        assert not any(line.startswith("forged") for line in text.split("\n")), text


def test_an_id_with_control_characters_is_shown_escaped(forged: None, penstock: Callable[..., Any]) -> None:
    assert ESCAPED in penstock("deadletters", "list").out
    assert ESCAPED in penstock("deadletters", "show", EVIL).out
    assert ESCAPED in penstock("jobs", "explain", EVIL).out
