"""Callbacks and chains of a stock Celery client. The messages are those that a real client makes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Signature, chain, group
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.config.errors import UndecodableMessage
from penstock.config.settings import Settings
from penstock.ledger.transitions.due import envelope_of, waiting
from penstock.schemas import Job
from penstock.schemas.wire.codec import Envelope, Message, decode, seal
from penstock.workers import Permanent, handles
from penstock.workers.engines.inline import Inline
from penstock.workers.executor.followups.celery_canvas import CeleryCanvas

CANVAS = CeleryCanvas(Settings(broker_url="redis://nowhere", max_payload_bytes=4096, stock_queues=("celery",)))


class Step(Job, kind="canvas.step", queue="steps", aliases=("canvas.old",), priority="high"):
    value: Any = None
    more: int = 0


class Bare(Job, kind="canvas.bare", queue="steps"): ...


class Blind(Job, kind="canvas.blind", queue="steps", track=False):
    size: int


seen: list[Any] = []


@handles(Step)
async def run_step(job: Step) -> Any:
    seen.append(job.value)
    return job.value


@handles(Blind)
async def run_blind(job: Blind) -> str:
    return "x" * job.size


def step(app: Celery, *args: Any, **options: Any) -> Signature:
    return app.signature("canvas.step", args=args, **options)


class Client:
    """A stock client over a broker in memory, and its messages."""

    def __init__(self) -> None:
        self.queue = uuid.uuid4().hex
        self.app = Celery(broker="memory://", set_as_current=False)
        self.app.conf.task_default_queue = self.queue

    def send(self, canvas: Signature, **options: Any) -> Message:
        canvas.apply_async(**options)
        with self.app.connection_for_read() as connection:
            raw = connection.default_channel.basic_get(self.queue, no_ack=True)
        body = raw.body if isinstance(raw.body, bytes) else raw.body.encode()
        message = decode(Envelope("steps", "normal", raw.headers, body))
        if message.embed is not None:
            CANVAS.check(message.embed)
        return message


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    with client.app:
        yield client


def follow(message: Message, result: Any) -> list[Message]:
    return [decode(through_the_ledger(envelope)) for envelope in CANVAS.after_success(message, json.dumps(result))]


def through_the_ledger(envelope: Envelope) -> Envelope:
    return envelope_of(SimpleNamespace(**waiting(envelope)))


def values(messages: list[Message]) -> list[tuple[Any, int]]:
    return [(message.job.value, message.job.more) for message in messages]  # type: ignore[attr-defined]


def test_the_next_of_a_chain_gets_the_result_first_and_its_own_arguments_after_it(client: Client) -> None:
    app = client.app
    sent = client.send(chain(step(app, 1), step(app, 5), app.signature("canvas.step", kwargs={"more": 7})))
    [second] = follow(sent, {"sum": 1})
    assert values([second]) == [({"sum": 1}, 5)]
    assert (second.queue, second.priority, second.attempt) == ("steps", "high", 1)
    assert second.id == sent.embed["chain"][1]["options"]["task_id"]  # type: ignore[index]
    [third] = follow(second, None)
    assert values([third]) == [(None, 7)]
    assert follow(third, "end") == []


def test_an_immutable_signature_gets_its_own_arguments_only(client: Client) -> None:
    sent = client.send(
        chain(step(client.app, 1), step(client.app, 2, immutable=True), step(client.app, immutable=True))
    )
    [second] = follow(sent, "result")
    assert values([second]) == [(2, 0)]
    assert values(follow(second, "result")) == [(None, 0)]


def test_a_long_chain_reaches_its_end_and_gets_shorter_on_the_way(client: Client) -> None:
    message = client.send(chain(*[step(client.app) for _ in range(200)]))
    sizes: list[int] = []
    for number in range(199):
        [envelope] = CANVAS.after_success(message, str(number))
        sizes.append(len(envelope.body))
        message = decode(envelope)
        assert values([message]) == [(number, 0)]
    assert CANVAS.after_success(message, "199") == []
    assert sizes == sorted(sizes, reverse=True)


def test_the_rest_of_a_chain_of_a_thousand_does_not_count_as_payload(client: Client) -> None:
    message = client.send(chain(*[step(client.app) for _ in range(1000)]))
    [envelope] = CANVAS.after_success(message, "0")
    assert len(envelope.body) > 40 * 4096
    assert len(decode(through_the_ledger(envelope)).embed["chain"]) == 998  # type: ignore[index]


def test_callbacks_get_the_result(client: Client) -> None:
    app = client.app
    callbacks = [step(app), step(app, 3), chain(step(app), step(app, 4)), group(step(app, 5), step(app, 6))]
    sent = client.send(step(app, 1), link=callbacks)
    followers = follow(sent, "r")
    assert values(followers) == [("r", 0), ("r", 3), ("r", 0), ("r", 5), ("r", 6)]
    assert len({message.id for message in followers}) == 5
    assert values(follow(followers[2], "s")) == [("s", 4)]


def test_the_callback_of_a_chain_follows_its_last(client: Client) -> None:
    inner = chain(step(client.app, 1), step(client.app, 2))
    inner.link(step(client.app, 3))
    [first] = follow(client.send(step(client.app), link=inner), "a")
    [second] = follow(first, "b")
    assert values([first, second, *follow(second, "c")]) == [("a", 1), ("b", 2), ("c", 3)]


def test_an_empty_chain_on_the_way_drops_nothing(client: Client) -> None:
    sent = client.send(step(client.app))
    sent.embed = {"chain": [signature(), signature("celery.chain", kwargs={"tasks": []})]}
    assert values(follow(sent, "r")) == [("r", 0)]


def test_a_group_may_end_a_chain(client: Client) -> None:
    app = client.app
    sent = client.send(chain(step(app, 1), group(step(app, 2), chain(step(app, 3), step(app, 4)))))
    followers = follow(sent, "r")
    assert values(followers) == [("r", 2), ("r", 3)]
    assert values(follow(followers[1], "s")) == [("s", 4)]


def test_an_errback_gets_the_id_of_the_job_and_goes_along_a_chain(client: Client) -> None:
    app = client.app
    sent = client.send(chain(step(app, 1), step(app, 2)).on_error(step(app, 9)))
    [second] = follow(sent, 1)
    for message in (sent, second):
        [errback] = [decode(envelope) for envelope in CANVAS.after_death(message)]
        assert values([errback]) == [(message.id, 9)]
        assert CANVAS.after_death(errback) == []


def test_the_options_of_a_signature_count(client: Client) -> None:
    app = client.app
    now, eta = datetime.now(UTC), datetime(2099, 1, 1, tzinfo=UTC)
    links = [
        step(app).set(countdown=60, expires=120, task_id="mine", queue="elsewhere"),
        step(app).set(eta=eta.isoformat(), expires=eta.isoformat(), priority=5),
    ]
    sent = client.send(step(app), link=links)
    rows = [waiting(envelope) for envelope in CANVAS.after_success(sent, None)]
    soon, late = rows
    assert timedelta(seconds=59) < soon["due_at"] - now < timedelta(seconds=90)
    assert timedelta(seconds=119) < soon["expires_at"] - now < timedelta(seconds=150)
    assert (soon["id"], soon["queue"], soon["priority"]) == ("mine", "steps", "high")
    assert (late["due_at"], late["expires_at"], late["priority"]) == (eta, eta, "low")


def test_a_former_name_of_a_kind_is_followed_under_its_present_one(client: Client) -> None:
    [follower] = CANVAS.after_success(client.send(step(client.app), link=client.app.signature("canvas.old")), "1")
    assert follower.kind == "canvas.step"


@pytest.mark.parametrize(("queue", "expected"), [("far", "far"), ("celery", "steps"), (None, "steps")])
def test_a_kind_unknown_here_keeps_its_arguments_and_goes_to_the_queue_it_names(
    client: Client, queue: str | None, expected: str
) -> None:
    far = client.app.signature("far.away", args=(2,), kwargs={"c": 3})
    if queue is not None:
        far.set(queue=queue)
    far.link(step(client.app))
    [follower] = CANVAS.after_success(client.send(step(client.app), link=far), '"r"')
    row = waiting(follower)
    assert row["queue"] == expected
    args, kwargs, embed = json.loads(envelope_of(SimpleNamespace(**row)).body)
    assert (args, kwargs, embed["callbacks"][0]["task"]) == (["r", 2], {"c": 3}, "canvas.step")
    assert "penstock_args" not in embed


def test_a_result_too_large_to_be_an_argument_is_reported(client: Client) -> None:
    sent = client.send(chain(step(client.app), step(client.app)))
    assert len(CANVAS.after_success(sent, json.dumps("x" * 4000))) == 1
    with pytest.raises(Permanent, match=r"'canvas\.step' are 5010 bytes, over the limit of 4096"):
        CANVAS.after_success(sent, json.dumps("x" * 5000))


def signature(task: str = "canvas.step", **fields: Any) -> dict[str, Any]:
    return {"task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False} | fields


@pytest.mark.parametrize(
    ("embed", "reason", "named"),
    [
        ({"chord": signature()}, "unsupported", "chord"),
        ({"callbacks": [signature("celery.chord")]}, "unsupported", "chord"),
        ({"chain": [signature(options={"chord": signature()})]}, "unsupported", "chord"),
        ({"chain": [signature(), signature("celery.group", kwargs={"tasks": [signature()]})]}, "unsupported", "group"),
        ({"errbacks": [signature("celery.starmap")]}, "unsupported", "starmap"),
        ({"chain": [signature(options={"link": [signature("celery.map")]})]}, "unsupported", "map"),
        ({"pipe_target": {"actor_name": "x"}}, "unsupported", "pipe_target"),
        ({"callbacks": [signature("canvas.bare")]}, "invalid_payload", "1 positional arguments for 0 fields"),
        ({"chain": [signature(args=[1, 2])]}, "invalid_payload", "3 positional arguments for 2 fields"),
        ({"callbacks": "x"}, "undecodable", "str"),
        ({"callbacks": [{"no": "task"}]}, "undecodable", "KeyError"),
        ({"chain": [signature(options={"countdown": 1e300})]}, "undecodable", "Overflow"),
        ({"chain": [signature(options={"queue": "no queue"})]}, "undecodable", "no queue"),
    ],
)
def test_a_job_that_something_unknown_follows_is_refused_before_it_runs(
    embed: dict[str, Any], reason: str, named: str
) -> None:
    with pytest.raises(UndecodableMessage, match=named) as caught:
        CANVAS.check(embed)
    assert caught.value.reason == reason


def test_signatures_nested_without_end_are_refused() -> None:
    embed: dict[str, Any] = {"callbacks": [signature()]}
    for _ in range(2000):
        embed = {"callbacks": [signature(options={"link": embed["callbacks"]})]}
    with pytest.raises(UndecodableMessage, match="nested too deeply"):
        CANVAS.check(embed)


def test_immutable_signatures_need_no_room_for_a_result() -> None:
    CANVAS.check({"callbacks": [signature("canvas.bare", immutable=True)], "chain": [signature(args=[1])]})


anything = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.lists(st.integers()), st.just({"a": None})
)
tasks = st.sampled_from(["canvas.step", "canvas.bare", "far.away", "celery.group", "celery.chain", "celery.chord", ""])


def signatures(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, max_size=2) | anything
    options = {
        "queue": st.sampled_from(["far", "celery", ""]) | anything,
        "countdown": st.floats() | anything,
        "eta": st.datetimes().map(str) | anything,
        "expires": st.floats(0, 1e6) | anything,
        "priority": st.integers(0, 9) | anything,
        "task_id": anything,
        "link": several,
        "link_error": several,
        "chain": several,
        "chord": st.none() | inner,
    }
    fields = {
        "args": st.lists(anything, max_size=2) | anything,
        "kwargs": st.fixed_dictionaries({"tasks": several}) | anything,
        "options": st.fixed_dictionaries({}, optional=options) | anything,
        "immutable": st.booleans(),
    }
    return st.fixed_dictionaries({"task": tasks | anything}, optional=fields)


whole = st.lists(signatures(signatures(anything)), max_size=2) | anything
embeds = st.fixed_dictionaries({}, optional=dict.fromkeys(["callbacks", "errbacks", "chain"], whole))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
@given(embeds)
@example({"callbacks": [{"task": "\ud800"}]})
@example({"errbacks": [{"task": "far.away", "kwargs": {"\ud800": "\0"}, "options": {"eta": "0001-01-01T00:00+14:00"}}]})
def test_an_embed_that_passes_the_check_can_be_sent(embed: dict[str, Any]) -> None:
    message = decode(seal("canvas.step", 1, b"[[],{},null]", "an id", "steps", "normal"))
    message.embed = embed
    try:
        CANVAS.check(embed)
    except UndecodableMessage:
        return
    followers = CANVAS.after_death(message)
    with suppress(Permanent):  # a chain's or group's own arguments may be too many
        followers += CANVAS.after_success(message, '"result"')
    for follower in map(through_the_ledger, followers):
        with suppress(UndecodableMessage):
            decode(follower)


def test_followers_run_in_a_worker_after_every_outcome() -> None:
    seen.clear()
    embed = {"chain": [signature(args=[1])], "errbacks": [signature(args=[2])]}
    sent = [("small", "canvas.blind", {"size": 3}), ("large", "canvas.blind", {"size": 2**18})]
    with Inline(queues=["steps"]) as inline:
        for job_id, kind, kwargs in sent:
            body = json.dumps([[], kwargs, embed]).encode()
            inline.broker.send([Envelope("steps", "normal", {"task": kind, "id": job_id}, body)])
        inline.drain()
        dead = inline.producer.handle("large").status()
        assert inline.producer.handle("small").status().state == "succeeded"
    assert dead.state == "dead"
    assert "over the limit" in (dead.error or "")
    assert sorted(seen) == ["large", "xxx"]
