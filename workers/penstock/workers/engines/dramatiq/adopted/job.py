"""`ActorJob`: the message of an actor as a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import dramatiq
from dramatiq.encoder import JSONEncoder
from dramatiq.message import get_encoder
from pydantic_core import to_json

from penstock.config.errors import UndecodableMessage
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.wire.codec import open_body
from penstock.workers.brokers.stock.messages import DRAMATIQ
from penstock.workers.handlers.context import Context


class ActorJob(AdoptedJob):
    """The base of the jobs of actors. `request` has the `options` of the message and its `message_timestamp`."""

    @classmethod
    def from_stock(cls, headers: Mapping[str, Any], body: bytes) -> Self:
        args, kwargs, embed = open_body(body)
        request = (embed or {}).get(DRAMATIQ)
        if not isinstance(request, dict):
            raise UndecodableMessage("undecodable", "an actor's message, but not in the form of Dramatiq's clients")
        return cls(args=args, kwargs=kwargs, request=request)

    def message(self, ctx: Context) -> dramatiq.Message[Any]:
        """The message that Dramatiq's own worker would get. Raises DecodeError: of the application's encoder."""
        options = {key: value for key, value in self.request.get("options", {}).items() if key != "eta"}
        fields: dict[str, Any] = {
            "queue_name": ctx.queue,
            "actor_name": ctx.kind,
            "args": self.args,
            "kwargs": self.kwargs,
            "options": options,
            "message_id": ctx.job_id,
            # A schedule's job has none.
            "message_timestamp": self.request.get("message_timestamp") or int(ctx.enqueued_at.timestamp() * 1000),
        }
        if type(get_encoder()) is not JSONEncoder:  # one that makes more of the JSON
            return dramatiq.Message.decode(to_json(fields))
        return dramatiq.Message(**fields)
