"""Alerts reach people: dispatchers and workers as processes, a real mail server and a real receiver of webhooks."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers import Arrivals
from support.builtin.receiver import SECRETS, Receiver
from support.builtin.servers import Server, controlled
from support.ledgers import Note
from support.polling import until
from support.stack import Stack

from penstock.ledger.alerts.overview import read_firings


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def mail() -> Iterator[tuple[Server, str]]:
    server = Server()
    controller = controlled(server)
    yield server, f"smtp://127.0.0.1:{controller.port}?timeout=10"
    controller.stop()


def variables(receiver: Receiver, smtp_url: str, **alert: object) -> dict[str, str]:
    hook = {"url": receiver.url, "secret": list(SECRETS), "kinds": [], "allow_networks": ["127.0.0.0/8", "::1/128"]}
    notify = ["ops", "ann@example.com", "bob@example.com"]
    return {
        "PENSTOCK_HOOKS": json.dumps({"ops": hook}),
        "PENSTOCK_ALERTS": json.dumps({"it": {"notify": notify, **alert}}),
        "PENSTOCK_SMTP_URL": smtp_url,
    }


def run_worker(stack: Stack, environment: dict[str, str]) -> None:
    command = [
        "worker",
        "--engine",
        stack.engine,
        "--queues",
        "webhooks,emails",
        "--import",
        "penstock.workers.builtin",
    ]
    stack.run(command, **environment)


def subjects(server: Server) -> list[str]:
    return [str(mail["Subject"]) for _, _, mail in server.mails]


def test_two_dispatchers_of_which_one_is_killed_notify_once_of_an_onset_and_of_an_end(
    redis_url: str, prefix: str, tmp_path: Path, receiver: Receiver, mail: tuple[Server, str], arrived: Arrivals
) -> None:
    server, smtp_url = mail
    stack = Stack("celery", redis_url, prefix, tmp_path)
    environment = variables(receiver, smtp_url, when="depth", above=2, queue="notes")
    try:
        first = stack.run(["dispatcher"], **environment)
        stack.run(["dispatcher"], **environment)
        run_worker(stack, environment)
        for number in range(3):
            stack.producer.enqueue(Note(text=str(number)))
        until(lambda: read_firings(stack.database), "the onset")
        stack.stop_process(first, signal.SIGKILL)
        until(lambda: len(receiver.got) == 1 and len(server.mails) == 1, "the notifications of the onset")
        stack.run(["dispatcher"], **environment)
        arrived.wait_for(3)
        until(lambda: len(receiver.got) == 2 and len(server.mails) == 2, "the notifications of the end")
        began, ended = receiver.events()
        assert (began["type"], ended["type"]) == ("alert.began", "alert.ended")
        assert began["data"]["id"] == ended["data"]["id"]
        assert began["data"] | {"id": 0, "began_at": 0} == {
            "id": 0,
            "alert": "it",
            "when": "depth",
            "subject": "notes",
            "detail": "3 jobs wait in queue notes",
            "value": 3.0,
            "above": 2.0,
            "began_at": 0,
            "ended_at": None,
        }
        assert ended["data"]["ended_at"] is not None
        assert subjects(server) == [f"[{prefix}] alert began: it (notes)", f"[{prefix}] alert ended: it (notes)"]
        assert server.mails[0][1] == ["ann@example.com", "bob@example.com"]
        assert "3 jobs wait in queue notes." in server.mails[0][2].get_content()
        [firing] = read_firings(stack.database)
        assert len(firing.jobs) == 4
    finally:
        stack.stop()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_workers_notify_that_no_dispatcher_is_alive_and_a_dispatcher_of_the_end(
    engine: str, redis_url: str, prefix: str, tmp_path: Path, receiver: Receiver, mail: tuple[Server, str]
) -> None:
    server, smtp_url = mail
    stack = Stack(engine, redis_url, prefix, tmp_path)
    environment = variables(receiver, smtp_url, when="no_dispatcher", over="0s")
    receiver.statuses.append(500)  # its retry is a delayed job, which only dispatchers send otherwise
    try:
        run_worker(stack, environment)
        run_worker(stack, environment)
        until(lambda: len(receiver.got) == 2 and len(server.mails) == 1, "the notifications of the onset")
        stack.run(["dispatcher"], **environment)
        until(lambda: len(receiver.got) == 3 and len(server.mails) == 2, "the notifications of the end")
        assert [event["type"] for event in receiver.events()] == ["alert.began", "alert.began", "alert.ended"]
        assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 2
        assert subjects(server) == [f"[{prefix}] alert began: it", f"[{prefix}] alert ended: it"]
        assert len(read_firings(stack.database)) == 1
    finally:
        stack.stop()
