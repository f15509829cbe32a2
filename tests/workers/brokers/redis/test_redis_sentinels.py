"""Redis behind sentinels, and the Redis Cluster that is refused."""

from __future__ import annotations

import asyncio
import marshal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support.brokers import envelope, fetch, ids
from support.polling import retry, until
from support.servers.redis_sentinels import RedisSentinels

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.producers.senders import Sender, open_async_sender, open_sender
from penstock.producers.senders.redis.sentinel import Sentinels
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.brokers.redis.consumer import RedisConsumer
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.local.up.redis_server import free_port, redis_answers, redis_command

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
URL = "redis+sentinel://u:p%40ss@one:1,two/3?master=main&sentinel_password=own&ssl_ca_certs=/ca"


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[RedisSentinels]:
    sentinels = RedisSentinels(tmp_path)
    sentinels.start()
    yield sentinels
    sentinels.stop()


def test_a_planned_failover_is_followed_by_senders_and_consumers(
    sentinels: RedisSentinels, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    async def main() -> None:
        asynchronous = open_async_sender(sentinels.url, prefix=prefix)
        await asynchronous.send([envelope("b")])
        assert sorted(ids(fetch(consumer, 2))) == ["a", "b"]
        with redis.Redis(port=sentinels.ports[0]) as client:
            until(lambda: client.execute_command("SENTINEL", "FAILOVER", "penstock"))
        sentinels.wait_for_promotion()

        with redis.Redis(port=sentinels.master.port) as client:
            until(lambda: client.info("replication")["role"] == "slave", "a first master that is a replica")
        retry(lambda: sender.send([envelope("c")]), BrokerUnavailable)
        await asynchronous.send([envelope("d")])
        await asynchronous.close()

    sender, consumer = make_sender(sentinels.url), make_consumer(sentinels.url)
    sender.send([envelope("a")])
    asyncio.run(main())

    def fetched() -> bool:
        try:
            deliveries.extend(consumer.fetch(100, 0.5))
        except BrokerUnavailable:
            retry(consumer.open, BrokerUnavailable)
        return {"c", "d"} <= set(ids(deliveries))

    deliveries: list[object] = []
    until(fetched)
    with redis.Redis(port=sentinels.replica.port) as client:
        assert client.info("replication")["role"] == "master"
        consumer.ack(deliveries)  # type: ignore[arg-type]


def test_a_keeper_follows_too(sentinels: RedisSentinels, prefix: str) -> None:
    consumer = open_consumer(sentinels.url, ["emails"], name="w", prefix=prefix, lease_keeper=True)
    assert isinstance(consumer, RedisConsumer)
    consumer.open()
    keeper = consumer._leases._lease_keeper
    assert keeper is not None
    assert keeper._url.startswith(f"redis://127.0.0.1:{sentinels.master.port}/0")
    sentinels.kill_master()
    retry(consumer.open, BrokerUnavailable)
    assert keeper._url.startswith(f"redis://127.0.0.1:{sentinels.replica.port}/0")
    assert marshal.loads(keeper._message([]))["port"] == sentinels.replica.port
    consumer.close()


def test_a_name_that_no_sentinel_knows_and_sentinels_that_do_not_answer_are_named(sentinels: RedisSentinels) -> None:
    with pytest.raises(BrokerUnavailable, match="no master called 'other'"):
        open_sender(sentinels.url.replace("master=penstock", "master=other")).ping()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9 .*penstock.*refused") as caught:
        open_sender("redis+sentinel://:secret@127.0.0.1:9/0?master=penstock").ping()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis+sentinel://one:1/0", "sentinel:///0?master=main"])
def test_a_url_without_a_master_or_a_host_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(ConfigError, match="master=NAME"):
        open_sender(url)


def test_a_url_gives_the_servers_and_the_sentinels_their_own_options() -> None:
    requests: list[str] = []

    def ask(url: str, command: tuple[str, ...]) -> list[bytes] | None:
        requests.append(url)
        assert command[-1] == "main"
        return [b"10.0.0.1", b"7000"] if "two" in url else None

    sentinels = Sentinels(URL)
    assert sentinels.find(ask) == "redis://u:p%40ss@10.0.0.1:7000/3?ssl_ca_certs=%2Fca"
    sentinels.find(ask)
    first, second = (f"redis://:own@{host}?ssl_ca_certs=%2Fca" for host in ("one:1", "two:26379"))
    assert requests == [first, second, second]  # the one that answered is asked first
    assert Sentinels("sentinel://a:1;sentinel://b:2/0?master_name=main").hosts == ["a:1", "b:2"]


def test_celerys_remote_control_follows_too(sentinels: RedisSentinels) -> None:
    with kombu_connection.connection(sentinels.url) as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.default_channel.client.connection_pool.service_name == "penstock"
        assert connection.default_channel.client.ping()


@pytest.fixture
def cluster_node(tmp_path: Path) -> Iterator[str]:
    def start() -> tuple[int, subprocess.Popen[bytes]] | None:
        port = until(lambda: (port := free_port()) < 55_000 and port)  # its other port is 10,000 above
        command = [*redis_command(tmp_path, port, tmp_path / "log"), "--cluster-enabled", "yes"]
        process = subprocess.Popen(command, start_new_session=True)
        until(lambda: redis_answers(port) or process.poll() is not None)
        return (port, process) if process.poll() is None else None

    port, process = until(start, "a node that starts: another process may take one of its ports")
    with redis.Redis(port=port) as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        until(lambda: "ok" in str(client.execute_command("CLUSTER", "INFO")).split("cluster_state", 1)[1][:8])
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()


def test_a_node_of_a_cluster_is_refused_with_a_reason(cluster_node: str) -> None:
    async def asynchronously() -> None:
        with pytest.raises(ConfigError, match="node of a Redis Cluster"):
            await open_async_sender(cluster_node).send([envelope()])

    consumer = open_consumer(cluster_node, ["emails"], name="w")
    asyncio.run(asynchronously())
    for refused in (
        open_sender(cluster_node).ping,
        lambda: open_sender(cluster_node).send([envelope()]),
        consumer.open,
    ):
        with pytest.raises(ConfigError, match="node of a Redis Cluster"):
            refused()
    consumer._wakeup.close()  # type: ignore[attr-defined]  # closing it would ask the server
    with redis.Redis.from_url(cluster_node) as client:
        assert client.dbsize() == 0


def test_a_cluster_url_is_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match=r"Redis Cluster.*sentinel"):
        open_sender("redis+cluster://a:1")
