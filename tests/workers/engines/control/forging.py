"""Messages to a worker's mailbox that no client of Celery's would send."""

from __future__ import annotations

import base64
import json
from typing import Any

import amqp
import redis
from running import Running

from penstock.producers.senders.rabbitmq.publisher import connect


def send(worker: Running, body: bytes, *, content_type: str = "application/json", **headers: Any) -> None:
    """Send a body to the mailbox of this worker alone."""
    if worker.settings.broker_url.startswith("amqp"):
        message = amqp.Message(body, content_type=content_type, content_encoding="utf-8", application_headers=headers)
        send_amqp(worker, message)
    else:
        properties = {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {}}
        wrapped = {"content-type": content_type, "content-encoding": "utf-8", "headers": headers}
        text = base64.b64encode(body).decode()
        send_redis(worker, json.dumps({"body": text, "properties": properties, **wrapped}).encode())


def send_call(worker: Running, **fields: Any) -> None:
    call = {"method": "ping", "arguments": {}, "destination": [worker.name], "pattern": None, "matcher": None}
    send(worker, json.dumps(call | fields).encode())


def send_amqp(worker: Running, message: amqp.Message) -> None:
    connection = connect(worker.settings.broker_url, timeout_seconds=10)
    message.properties.setdefault("content_encoding", "binary")  # else py-amqp decodes the body to send it
    connection.channel().basic_publish(message, routing_key=f"{worker.name}.celery.pidbox")
    connection.close()


def send_redis(worker: Running, published: bytes) -> None:
    client: Any = redis.Redis.from_url(worker.settings.broker_url)
    client.publish("/0.celery.pidbox", published)
    client.close()
