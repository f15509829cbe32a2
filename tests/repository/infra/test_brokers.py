"""`infra/rabbitmq` and `infra/redis`, against the code and against real servers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from support.polling import until
from support.servers.shared import AMQP_URL, need

from penstock.config.settings import Settings
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, PRIORITIES
from penstock.workers.local.up.redis_server import find_redis_server, free_port, redis_answers

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
DEFINITIONS = INFRA / "rabbitmq" / "definitions.json"


class RecordingChannel:
    """Records declarations, in the form of a definitions file."""

    def __init__(self, vhost: str) -> None:
        self.vhost = vhost
        self.made: dict[str, list[dict[str, Any]]] = {"exchanges": [], "queues": [], "bindings": []}

    def exchange_declare(self, exchange: str, type: str, durable: bool = False, auto_delete: bool = True) -> None:
        kept = {"durable": durable, "auto_delete": auto_delete, "internal": False, "arguments": {}}
        self.made["exchanges"].append({"name": exchange, "vhost": self.vhost, "type": type, **kept})

    def queue_declare(self, queue: str, durable: bool, auto_delete: bool, arguments: dict[str, Any]) -> None:
        kept = {"durable": durable, "auto_delete": auto_delete, "arguments": arguments}
        self.made["queues"].append({"name": queue, "vhost": self.vhost, **kept})

    def queue_bind(self, queue: str, exchange: str, routing_key: str = "") -> None:
        to = {"destination": queue, "destination_type": "queue", "routing_key": routing_key, "arguments": {}}
        self.made["bindings"].append({"source": exchange, "vhost": self.vhost, **to})


def our_queues() -> list[str]:
    return [*tomllib.loads((ROOT / "config" / "penstock.toml").read_text())["queues"], DISPATCHER_QUEUE]


def test_the_definitions_are_what_the_code_declares() -> None:
    from penstock.producers.senders.rabbitmq.publisher import declare_dead, declare_lane

    definitions = json.loads(DEFINITIONS.read_text())
    channel = RecordingChannel(definitions.pop("vhosts")[0]["name"])
    prefix = Settings.model_fields["prefix"].default
    declare_dead(channel, prefix)
    for queue in our_queues():
        for priority in PRIORITIES:
            declare_lane(channel, prefix, queue, priority)
    assert set(definitions) == set(channel.made)
    for what, declared in channel.made.items():
        assert sorted(map(repr, map(ordered, definitions[what]))) == sorted(map(repr, map(ordered, declared)))


def ordered(value: Any) -> Any:
    return {key: ordered(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


@pytest.fixture
def own_vhost() -> Iterator[str]:
    """The name of a vhost for this test alone, deleted afterwards."""
    need("RabbitMQ")
    if shutil.which("rabbitmqctl") is None or subprocess.run(["rabbitmqctl", "ping"], capture_output=True).returncode:
        pytest.skip("rabbitmqctl cannot reach a node on this machine")
    name = f"penstock-test-{uuid.uuid4().hex[:10]}"
    yield name
    subprocess.run(["rabbitmqctl", "--quiet", "delete_vhost", name], capture_output=True)


@pytest.mark.rabbitmq
def test_a_broker_imports_the_definitions_and_then_takes_the_code_s(own_vhost: str) -> None:
    from penstock.producers.senders.rabbitmq.publisher import Publisher

    text = DEFINITIONS.read_text()
    definitions = json.loads(text)
    # `"vhost": "penstock"` and the vhost's own name; the queues and the exchange have longer names.
    moved = re.sub(r'("vhosts": \[\s*\{"name": |"vhost": )"penstock"', rf'\g<1>"{own_vhost}"', text)
    # Not in a test's own folder: rabbitmqctl changes to the broker's user, who may not enter it.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(moved)
        file.flush()
        Path(file.name).chmod(0o644)
        command = ["rabbitmqctl", "import_definitions", file.name]
        imported = subprocess.run(command, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr

    parts = urlsplit(AMQP_URL)
    allow = ["rabbitmqctl", "set_permissions", "-p", own_vhost, parts.username or "guest", ".*", ".*", ".*"]
    subprocess.run(allow, capture_output=True, check=True)
    publisher = Publisher(urlunsplit(parts._replace(path=f"/{own_vhost}")), "penstock", 30.0)
    try:  # declares every lane, which the broker refuses if one is there with other arguments
        assert [publisher.depth(queue) for queue in our_queues()] == [0 for _ in our_queues()]
    finally:
        publisher.close()
    listing = ["rabbitmqctl", "--quiet", "list_queues", "-p", own_vhost, "name", "type", "--formatter", "json"]
    queues = json.loads(subprocess.run(listing, capture_output=True, check=True).stdout)
    assert {queue["name"] for queue in queues} == {queue["name"] for queue in definitions["queues"]}
    assert {queue["type"] for queue in queues} <= {"quorum", "rabbit_quorum_queue"}


def test_a_real_redis_runs_with_the_settings(tmp_path: Path) -> None:
    import redis

    port = free_port()
    password = tmp_path / "password.conf"
    password.write_text("requirepass a-word\n")
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--include", str(password)]
    log = tmp_path / "redis.log"
    command = [str(find_redis_server()), str(INFRA / "redis" / "redis.conf"), *arguments, "--logfile", str(log)]
    process = subprocess.Popen(command)
    client = redis.Redis(port=port, password="a-word", decode_responses=True)
    try:
        until(
            lambda: redis_answers(port, "a-word"),
            "Redis",
            unless=lambda: process.poll() is not None and (log.read_text() if log.exists() else "it did not start"),
        )
        assert not redis_answers(port)
        assert client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        assert int(client.config_get("maxmemory")["maxmemory"]) == 1024**3
    finally:
        client.close()
        process.terminate()
        process.wait(20)
