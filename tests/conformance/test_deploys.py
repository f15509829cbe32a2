"""A rolling deploy: a worker with older code meets jobs that only newer code knows, on every engine and broker."""

from __future__ import annotations

from datetime import timedelta

from support.polling import WAIT_SECONDS, until
from support.stack import Process, Stack

from penstock.producers.explain import explain
from penstock.schemas.wire.codec import EMBED, Envelope, body_of, seal
from penstock.schemas.wire.ids import new_id

NEWER = {
    "deploy.fresh": (1, b"{}", "unknown_kind"),
    "deploy.light": (1, b"{}", "unknown_kind"),
    "deploy.moved": (1, b"{}", "no_handler"),
    "deploy.mail": (2, b'{"to":["ada"]}', "unknown_version"),
    "deploy.plus": (1, b'{"a":1,"b":2}', "invalid_payload"),
}
"""Kind → version and payload of the newer code, and what the older code says."""


def envelopes(*kinds: str) -> list[Envelope]:
    return [
        seal(kind, NEWER[kind][0], body_of(NEWER[kind][1], EMBED), new_id(), "deploys", "normal")
        for kind in kinds or NEWER
    ]


def start(stack: Stack, code: str, grace: str) -> Process:
    words = ["worker", "--engine", stack.engine, "--queues", "deploys", "--import", "deploy_jobs"]
    # A name of its own: on RabbitMQ the queue of a node's remote control belongs to the whole virtual host.
    return stack.run(
        [*words, "--name", f"{code}-{stack.settings.prefix}"], DEPLOY=code, PENSTOCK_UNKNOWN_KIND_GRACE=grace
    )


def held_back(stack: Stack, job_id: str) -> bool:
    return "held back" in explain(stack.database, job_id).because


def test_jobs_that_only_newer_code_knows_wait_for_it(own_stack: Stack) -> None:
    old = start(own_stack, "old", "10m")
    sent = envelopes()
    own_stack.producer._sender.send(sent)
    for envelope in sent:
        until(lambda id=envelope.id: held_back(own_stack, id), f"{envelope.kind} to be held back")
    explanation = explain(own_stack.database, sent[0].id)
    assert f"worker {own_stack.engine}@old-{own_stack.settings.prefix} does not (unknown_kind" in explanation.because
    assert explanation.facts["held_until"] - explanation.facts["held_since"] == timedelta(minutes=10)
    start(own_stack, "new", "10m")
    until(lambda: len(own_stack.live_workers()) == 2, "the worker with newer code")
    own_stack.stop_process(old)  # as a deploy does; else it may hold a job back again, each time for twice as long
    for envelope in sent:
        handle = own_stack.producer.handle(envelope.id)
        if envelope.kind == "deploy.light":
            until(lambda handle=handle: handle.status().failures >= 1, "its failure to be on record")
        else:
            status = handle.wait(WAIT_SECONDS)
            assert (status.state, status.result) == ("succeeded", "new"), envelope.kind
    assert not [letter for _, _, reason in NEWER.values() for letter in own_stack.letters(reason)]


def test_jobs_that_no_worker_knows_within_the_grace_become_dead_letters(own_stack: Stack) -> None:
    start(own_stack, "old", "2s")
    sent = envelopes()
    own_stack.producer._sender.send(sent)
    for envelope in sent:
        until(lambda id=envelope.id: own_stack.letter(id) is not None, f"{envelope.kind} to be a dead letter")
        assert own_stack.letter(envelope.id).reason == NEWER[envelope.kind][2]
        assert own_stack.producer.handle(envelope.id).status().state == "dead"
