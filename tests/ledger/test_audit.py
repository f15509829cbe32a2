from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database


def test_acts_are_found_by_who_what_when_and_to_what_newest_first(ledger: Database) -> None:
    before = datetime.now(UTC)
    for actor, act, subject in (("ada", "cancel", "j1"), ("ada", "erase", "j2"), ("bob", "cancel", "j2")):
        ledger.write(
            lambda connection, actor=actor, act=act, subject=subject: audit.write(
                connection, actor=actor, act=act, subject=subject, detail={"at": before}
            )
        )

    def found(**filters: object) -> list[tuple[str, str, str | None]]:
        return [(entry.actor, entry.act, entry.subject) for entry in audit.find(ledger, **filters)]  # type: ignore[arg-type]

    assert found() == [("bob", "cancel", "j2"), ("ada", "erase", "j2"), ("ada", "cancel", "j1")]
    assert found(limit=1) == [("bob", "cancel", "j2")]
    assert found(actor="ada", acts=["cancel"]) == [("ada", "cancel", "j1")]
    assert len(found(acts=["cancel", "erase"])) == 3
    assert found(subject="j1") == [("ada", "cancel", "j1")]
    assert found(since=before, until=before + timedelta(hours=1)) == found()
    assert found(until=before) == found(since=datetime.now(UTC) + timedelta(hours=1)) == []
    [line, *_] = audit.find(ledger)
    assert (line.subject_kind, line.count, line.detail) == ("job", 1, {"at": before.isoformat()})
    assert before <= line.at <= datetime.now(UTC)


def test_an_act_is_rolled_back_with_what_it_did(ledger: Database) -> None:
    def fail_after_line(connection: sa.Connection) -> None:
        audit.write(connection, actor="ada", act="erase", subject="j1")
        raise LookupError

    with pytest.raises(LookupError):
        ledger.write(fail_after_line)
    assert audit.find(ledger) == []


def test_an_act_on_many_in_several_transactions_is_one_line_that_is_found_by_each(ledger: Database) -> None:
    entry = audit.Entry(ledger, actor="ada", act="erase", detail={"key": "k"})
    for ids in (["a", "b"], [], ["c"]):
        entry.line = ledger.write(lambda connection, ids=ids: entry.write(connection, ids))
    [line] = audit.find(ledger)
    assert (line.id, line.subject, line.count, line.detail) == (entry.line, None, 3, {"key": "k"})
    assert [audit.find(ledger, subject=subject) for subject in "abc"] == [[line]] * 3
    assert audit.find(ledger, subject="d") == []


def test_an_act_without_an_actor_is_refused_and_any_text_can_be_kept(ledger: Database) -> None:
    with pytest.raises(ValueError, match="actor"):
        ledger.write(lambda connection: audit.write(connection, actor=" ", act="erase"))
    strange = "a\0b\ud800" + "x" * 300
    ledger.write(
        lambda connection: audit.write(connection, actor=strange, act="erase", subject=strange, detail={"w": strange})
    )
    [line] = audit.find(ledger)
    assert line.actor == line.subject
    assert line.actor.startswith("a\N{REPLACEMENT CHARACTER}b?xxx")
    assert line.actor.endswith("[cut: 304 characters]")
    assert len(line.actor) == 255
    assert line.detail["w"].endswith("x" * 300)
