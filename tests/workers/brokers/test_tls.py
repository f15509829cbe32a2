"""TLS to both brokers, with a CA of the test's own: the right files work, and a wrong one is named."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.brokers import envelope, fetch, ids
from support.certificates import Authority, Certificate
from support.polling import until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.producers.senders import Sender, open_async_sender, open_sender
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.brokers.redis import lease_keeper_process
from penstock.workers.brokers.redis.lease_keeper import _address
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.local.up.redis_server import free_port, redis_command

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]


@dataclass
class Site:
    """A broker with TLS on `port`, who signed its certificate, and a certificate of the client's."""

    broker: str
    port: int
    authority: Authority
    client: Certificate

    def url(self, authority: Path | None = None, host: str = "127.0.0.1", **parameters: str) -> str:
        options = {"ssl_certfile": self.client.file, "ssl_keyfile": self.client.key, **parameters}
        if authority is not None:
            options["ssl_ca_certs"] = authority
        query = "&".join(f"{name}={value}" for name, value in options.items())
        if self.broker == "redis":
            return f"rediss://:secret@{host}:{self.port}/0?{query}"
        return f"amqps://guest:guest@{host}:{self.port}//?{query}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def site(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    server = authority.issue(f"server-{request.param}", "IP:127.0.0.1")
    client = authority.issue(f"client-{request.param}", "DNS:client")
    folder = tmp_path_factory.mktemp("tls-server")
    if request.param == "rabbitmq":
        if find_rabbitmq_server() is None:
            pytest.skip("rabbitmq-server is not installed: no node with TLS")
        node = RabbitmqNode(folder, (server.file, server.key, authority.file))
        node.start()
        yield Site("rabbitmq", node.tls_port, authority, client)
        node.kill()
        return
    port, log = free_port(), folder / "log"
    tls = ["--tls-port", str(port), "--tls-cert-file", str(server.file), "--tls-key-file", str(server.key)]
    tls += ["--tls-ca-cert-file", str(authority.file), "--requirepass", "secret"]
    process = subprocess.Popen(
        [*redis_command(folder, 0, log), *tls],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    until(lambda: process.poll() is not None or (log.exists() and "Ready to accept" in log.read_text()))
    if process.poll() is not None:
        assert process.stderr is not None
        process.stderr.close()
        pytest.skip("this redis-server was built without TLS")
    yield Site("redis", port, authority, client)
    process.kill()
    process.communicate()


def test_jobs_go_through_tls(site: Site, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer) -> None:
    url = site.url(site.authority.file)
    consumer = make_consumer(url)
    make_sender(url).send([envelope("a")])

    async def asynchronously() -> None:
        sender = open_async_sender(url, prefix=prefix)
        await sender.send([envelope("b")])
        await sender.close()

    asyncio.run(asynchronously())
    deliveries = fetch(consumer, 2)
    assert sorted(ids(deliveries)) == ["a", "b"]
    consumer.ack(deliveries)


def refused(url: str, error: type[Exception], why: str) -> None:
    async def asynchronously() -> None:
        sender = open_async_sender(url)
        try:
            await sender.ping()
        finally:
            await sender.close()

    consumer = open_consumer(url, ["emails"], name="w")
    for attempt in (open_sender(url).ping, lambda: asyncio.run(asynchronously()), consumer.open):
        with pytest.raises(error, match=why) as caught:
            attempt()
        assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value)
        assert "secret" not in str(caught.value)
    if hasattr(consumer, "_wakeup"):
        consumer._wakeup.close()


def test_a_server_with_an_unknown_certificate_is_refused(site: Site, tmp_path: Path) -> None:
    refused(site.url(Authority(tmp_path / "other").file), BrokerUnavailable, "(?i)certificate.verify.failed")
    refused(site.url(), BrokerUnavailable, "(?i)certificate.verify.failed")  # nor by the system's authorities


def test_a_server_with_a_certificate_of_another_name_is_refused(site: Site) -> None:
    refused(site.url(site.authority.file, host="localhost"), BrokerUnavailable, "(?i)localhost.*mismatch|not valid for")
    sender = open_sender(site.url(site.authority.file, host="localhost", ssl_check_hostname="false"))
    sender.ping()
    sender.close()


def test_verification_can_be_turned_off(site: Site) -> None:
    sender = open_sender(site.url(host="localhost", ssl_cert_reqs="none"))
    sender.ping()
    sender.close()


def test_a_file_that_is_missing_is_named(site: Site) -> None:
    refused(site.url(Path("/nowhere/ca.crt")), ConfigError, r"ssl_ca_certs=/nowhere/ca\.crt: No such file")


def test_a_server_without_tls_is_refused(redis_url: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1"):
        open_sender(redis_url.replace("redis://", "rediss://"), timeout_seconds=1).ping()


def test_celerys_remote_control_goes_through_tls_and_believes_no_server_it_cannot_verify(
    site: Site, tmp_path: Path
) -> None:
    with kombu_connection.connection(site.url(site.authority.file)) as connection:
        connection.ensure_connection(max_retries=1)
    for wrong in (site.url(Authority(tmp_path / "other").file), site.url()):
        with (
            kombu_connection.connection(wrong) as connection,
            pytest.raises(Exception, match=r"(?i)certificate.verify.failed"),
        ):
            connection.connect()
            connection.default_channel.queue_declare("never", passive=True)


@pytest.mark.parametrize("site", ["redis"], indirect=True)
def test_the_process_that_keeps_leases_speaks_tls(site: Site, prefix: str) -> None:
    options = {**_address(site.url(site.authority.file)), "timeout_seconds": 5.0, "group": "workers", "name": "w"}
    lease_keeper_process.renew(options | {"lanes": [f"{prefix}:none".encode()]})
