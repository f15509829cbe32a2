"""Outgoing webhooks: signed, retried, sent at the end of jobs, and never into private networks."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.builtin.receiver import SECRETS, Receiver
from support.certificates import Authority
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until

from penstock.config.errors import JobFailed
from penstock.config.sections.events import OutgoingWebhookSettings
from penstock.config.settings import Settings
from penstock.producers.enqueue.producer import Producer
from penstock.producers.testing import testing
from penstock.schemas import Job, RetryPolicy
from penstock.schemas.builtin.webhooks import DeliverWebhook
from penstock.workers import Context, Discard, Permanent, handles
from penstock.workers.builtin.webhooks import handler as deliveries
from penstock.workers.builtin.webhooks.http_client import is_public, post, resolve
from penstock.workers.engines.inline import Inline

assert deliveries  # imported for its handler
LOOPBACK = ("127.0.0.0/8",)


class Greet(Job, kind="hooked.greet", queue="hooked", retry=RetryPolicy(max_attempts=1)):
    name: str
    how: str = "return"


@handles(Greet)
def greet(job: Greet, ctx: Context) -> Any:
    match job.how:
        case "raise":
            raise ValueError("no greeting")
        case "discard":
            return Discard("nobody there")
        case "session":
            assert ctx.session is not None
    return f"hello {job.name}"


class Quiet(Job, kind="hooked.quiet", queue="hooked", track=False): ...


@handles(Quiet)
async def quiet(job: Quiet) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def start(tmp_path: Path, receiver: Receiver) -> Iterator[Callable[..., Producer]]:
    """Run jobs here, with a hook to the receiver."""
    running: list[Inline] = []

    def start(**hook: Any) -> Producer:
        options = {"url": receiver.url, "secret": SECRETS, "allow_networks": LOOPBACK, **hook}
        settings = Settings(
            database_url=set_up(f"sqlite:///{tmp_path}/ledger.db"),
            storage_url=f"file:{tmp_path}/storage",
            hooks={"shop": OutgoingWebhookSettings(**options)},
            unknown_kind_grace=timedelta(),
        )
        running.append(Inline(settings, queues=["hooked", "webhooks"]).start())
        return running[-1].producer

    yield start
    for engine in running:
        engine.stop()


def hook(**fields: Any) -> DeliverWebhook:
    values = {"hook": "shop", "type": "shop.opened", "occurred_at": "2026-01-31T12:00:00Z", **fields}
    return DeliverWebhook.model_validate(values)


@pytest.mark.parametrize(
    ("how", "state"),
    [("return", "succeeded"), ("session", "succeeded"), ("discard", "discarded"), ("raise", "dead")],
)
def test_the_end_of_a_job_is_delivered(
    start: Callable[..., Producer], receiver: Receiver, how: str, state: str
) -> None:
    producer = start(include=("result", "error"))
    job = producer.enqueue(Greet(name="Ada", how=how), key="k", tenant="acme")
    until(lambda: receiver.got)
    [events] = receiver.events()
    assert events["type"] == f"job.{state}"
    data = events["data"]
    assert (data["id"], data["kind"], data["state"], data["key"], data["tenant"]) == (
        job.id,
        "hooked.greet",
        state,
        "k",
        "acme",
    )
    assert data.get("result") == ("hello Ada" if state == "succeeded" else None)
    assert ("no greeting" in data.get("error", "")) == (state == "dead")
    assert events["timestamp"] == data["finished_at"]


def test_deliveries_are_made_for_the_chosen_kinds_and_states_only(
    start: Callable[..., Producer], receiver: Receiver
) -> None:
    producer = start(kinds=("hooked.quiet", "hooked.g*"), states=("succeeded",))
    producer.enqueue(Greet(name="Ada", how="raise"))
    producer.enqueue(Greet(name="Ada"))
    producer.enqueue(Quiet())
    until(lambda: len(receiver.got) == 2)
    events = receiver.events()
    assert {event["data"]["kind"] for event in events} == {"hooked.greet", "hooked.quiet"}
    assert not any("result" in event["data"] for event in events)


def test_a_delivery_is_tried_again_under_the_same_id(start: Callable[..., Producer], receiver: Receiver) -> None:
    receiver.statuses = [302]
    sent = start().enqueue(hook(data={"at": "9"}))
    assert sent.result(WAIT_SECONDS) == {"status": 204}
    assert [headers["webhook-id"] for _, headers, _ in receiver.got] == [sent.id, sent.id]
    assert [path for path, _, _ in receiver.got] == ["/hook", "/hook"]  # a redirect is not followed
    assert receiver.events()[0] == {
        "type": "shop.opened",
        "timestamp": "2026-01-31T12:00:00+00:00",
        "data": {"at": "9"},
    }


def test_a_receiver_that_is_gone_ends_it(start: Callable[..., Producer], receiver: Receiver) -> None:
    receiver.statuses = [410]
    assert start().enqueue(hook()).wait(WAIT_SECONDS).state == "discarded"


@pytest.mark.parametrize(
    ("options", "fields", "says"),
    [
        ({"allow_networks": ()}, {}, "not public"),
        ({}, {"hook": "nobody"}, "no hook 'nobody'"),
        ({}, {"url": "http://attacker.example"}, "address of its own"),
        ({"url": None}, {}, "where to"),
        ({"url": None, "allow_networks": ()}, {"url": "http://0x7f.1:1/"}, "127.0.0.1"),
        ({"url": None}, {"url": "http://[::1/"}, "not a URL"),
    ],
)
def test_a_forbidden_delivery_is_a_dead_letter_at_once(
    start: Callable[..., Producer], receiver: Receiver, options: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(JobFailed, match="dead") as raised:
        start(**options).enqueue(hook(**fields)).result(WAIT_SECONDS)
    assert says in str(raised.value)
    assert receiver.got == []


def test_a_hook_without_an_address_sends_where_the_job_says(start: Callable[..., Producer], receiver: Receiver) -> None:
    producer = start(url=None)
    assert producer.enqueue(hook(url=receiver.url)).result(WAIT_SECONDS) == {"status": 204}
    assert producer.enqueue(Greet(name="Ada")).result(WAIT_SECONDS) == "hello Ada"
    assert len(receiver.events()) == 1


def test_the_testing_kit_delivers_nothing(receiver: Receiver) -> None:
    settings = Settings(
        hooks={"shop": OutgoingWebhookSettings(url=receiver.url, secret="c2VjcmV0", allow_networks=LOOPBACK)}
    )
    with testing(settings) as kit:
        Producer("redis://127.0.0.1:1/0").enqueue(Greet(name="Ada"))
        assert [run.result for run in kit.drain()] == ["hello Ada"]
        kit.refute_enqueued()
    assert receiver.got == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        *((address, False) for address in ("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254")),
        *(
            (address, False)
            for address in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1")
        ),
        *(
            (address, False)
            for address in ("fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")
        ),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        # Local NAT64, IPv4-compatible, site-local, SRv6, ISATAP of a private address, 6to4's relays, documentation.
        *((address, False) for address in ("64:ff9b:1::7f00:1", "::7f00:1", "::5db8:d822", "fec0::1", "5f00::1")),
        *((address, False) for address in ("2606:2800::5efe:7f00:1", "192.88.99.1", "3fff::1", "2001:db8::1")),
        *((address, False) for address in ("100::1", "4000::1")),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_address_that_was_looked_at_is_the_one_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of names that says something else when it is asked again changes nothing."""
    requests: list[str] = []

    async def answer(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        requests.append(host)
        assert len(requests) == 1, "resolved a second time"
        return [(None, None, None, "", ("10.0.0.1", port)), (None, None, None, "", ("127.0.0.1", port))]

    async def run() -> int:
        monkeypatch.setattr(asyncio.get_running_loop().__class__, "getaddrinfo", answer, raising=True)
        url = receiver.url.replace("localhost", "shop.example")
        allowed = [ipaddress.ip_network("127.0.0.0/8")]
        return (await post(url, b"{}", {}, allowed=allowed, timeout_seconds=WAIT_SECONDS)).status_code

    assert asyncio.run(run()) == 204
    assert requests == ["shop.example"]
    assert receiver.got[0][1]["host"].startswith("shop.example:")


def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("server", "DNS:localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.file, issued.key)
    receiver = Receiver(context)
    trusted = ssl.create_default_context(cafile=str(authority.file))
    allowed = [ipaddress.ip_network("127.0.0.0/8")]

    def send(host: str) -> int:
        url = receiver.url.replace("http://localhost", f"https://{host}")
        request = post(url, b"{}", {}, allowed=allowed, timeout_seconds=WAIT_SECONDS, verify=trusted)
        return asyncio.run(request).status_code

    try:
        assert send("localhost") == 204
        with pytest.raises(httpx.ConnectError, match="certificate"):
            send("127.0.0.1")
    finally:
        receiver.stop()


def test_a_host_with_private_addresses_only_is_refused() -> None:
    with pytest.raises(Permanent, match=r"localhost is .*not public"):
        asyncio.run(resolve("localhost", 80))
