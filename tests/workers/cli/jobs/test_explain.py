"""`penstock jobs explain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.ledgers import Login, Note, claimed, end, message

from penstock.config.settings import load_settings
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.producers import Producer
from penstock.producers.senders import open_sender
from penstock.schemas import Outcome
from penstock.schemas.wire.codec import encode

Run = Callable[..., Any]


def test_the_sentence_comes_first_then_what_to_do_then_the_facts(penstock: Run, ledger: Database) -> None:
    login = message(Login(user="ada", password="s3cret"))
    retry = {"error": "OSError: no route", "due_at": datetime.now(UTC) + timedelta(hours=1)}
    end(ledger, claimed(ledger, login), Outcome.RETRY, **retry)
    result = penstock("jobs", "explain", login.id)
    first, second, *facts = result.out.splitlines()
    assert first.startswith(f"{login.id} (retrying): attempt 1 failed (OSError: no route)")
    assert second == "To do: start a dispatcher: penstock dispatcher"
    assert any(line.split() == ["kind", "ledger.login"] for line in facts)
    output = penstock("jobs", "explain", login.id, "--json").json
    assert sorted(output) == ["advice", "because", "facts", "job_id", "state"]
    assert (output["state"], output["facts"]["failures"]) == ("retrying", 1)
    assert datetime.fromisoformat(output["facts"]["due_at"]).tzinfo is not None
    assert "s3cret" not in result.out + str(output)
    assert result.code == 0


def test_a_job_that_only_the_broker_knows_is_found_and_an_unknown_one_is_a_failure(
    penstock: Run, ledger: Database
) -> None:
    settings = load_settings()
    sender = open_sender(settings.broker_url, prefix=settings.prefix)
    job = encode(Note())
    sender.send([job])
    sender.close()
    result = penstock("jobs", "explain", job.id)
    assert result.code == 0
    assert (
        "(not on record): no live worker consumes queue 'notes'; it waits in queue 'notes' at position 1" in result.out
    )
    output = penstock("jobs", "explain", "nobodys", "--json")
    assert (output.code, output.json["state"]) == (1, None)
    assert "nor has the broker" in output.json["because"]


def test_a_job_in_a_queue_that_no_imported_module_names_is_found_and_its_queue_is_listed(
    penstock: Run, ledger: Database
) -> None:
    settings = load_settings()
    sender = open_sender(settings.broker_url, prefix=settings.prefix)
    job = encode(Note())
    sender.send([dataclasses.replace(job, queue="elsewhere")])
    sender.close()
    result = penstock("jobs", "explain", job.id, "--json")
    assert (result.code, result.json["facts"]["queue"]) == (0, "elsewhere")
    assert {row["queue"]: row["waiting"] for row in penstock("queues", "list", "--json").json}["elsewhere"] == 1


def test_queues_that_cannot_be_listed_are_a_line_next_to_the_answer(
    penstock: Run, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "amqp://guest:guest@127.0.0.1:1//")
    monkeypatch.setenv("PENSTOCK_RABBITMQ_MANAGEMENT_URL", "http://127.0.0.1:1")
    result = penstock("jobs", "explain", "nobodys", "--json")
    assert result.code == 1
    assert "rabbitmq-plugins enable rabbitmq_management" in result.err
    assert result.json["state"] is None


def test_an_unavailable_broker_does_not_keep_the_ledger_from_answering(
    penstock: Run, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "redis://127.0.0.1:1/0")
    output = penstock("jobs", "explain", "nobodys", "--json")
    assert output.code == 1
    assert "cannot be asked" in output.json["facts"]["broker"]
    assert "either it waits in the broker" in output.json["because"]


def test_a_key_says_which_job_holds_it(penstock: Run, ledger: Database) -> None:
    settings = load_settings()
    urls = {"prefix": settings.prefix, "database_url": settings.database_url}
    with Producer(settings.broker_url, **urls) as producer:
        job_id = producer.enqueue(Note(), key="k", unique="reject").id
    [output] = penstock("jobs", "explain", "--key", "k", "--json").json
    assert output["job_id"] == job_id
    assert output["because"].startswith("key 'k' of ledger.note is held by this job: no live worker consumes queue")
    assert output["facts"]["position"] == 1
    assert job_id in penstock("jobs", "explain", "--key", "k", "--kind", "ledger.note").out
    unknown = penstock("jobs", "explain", "--key", "other", "--json")
    assert (unknown.code, unknown.json) == (1, [])
    assert "no job has taken" in unknown.err


@pytest.mark.parametrize("arguments", [(), ("x", "--key", "k"), ("x", "--kind", "k"), ("x", "--tenant", "t")])
def test_contradictory_options_of_explain_are_wrong_use(
    penstock: Run, ledger: Database, arguments: tuple[str, ...]
) -> None:
    assert penstock("jobs", "explain", *arguments).code == 2


def test_queues_say_how_many_consume_them(penstock: Run, ledger: Database) -> None:
    lease = timedelta(hours=1)
    for name in ("w1", "w2"):
        heartbeats.register(ledger, name, engine="celery", queues=["notes"], kinds={}, lease=lease)
    heartbeats.register(ledger, "gone", engine="celery", queues=["ticks"], kinds={}, lease=-lease)
    heartbeats.register(ledger, "d1", engine="dispatcher", queues=["dispatcher"], kinds={}, lease=lease)
    alive = {row["queue"]: row["workers"] for row in penstock("queues", "list", "--json").json}
    assert (alive["notes"], alive["ticks"], alive["dispatcher"]) == (2, 0, 1)


def test_the_error_for_an_invalid_time_shows_both_ways_to_write_it(penstock: Run, ledger: Database) -> None:
    result = penstock("jobs", "list", "--since", "yesterday")
    assert result.code == 2
    assert "1h, 2d" in " ".join(result.err.split())
