"""Celery's callbacks, errbacks and chains: the jobs that an unmodified Celery client wants after a job.

They come next to the job's fields (`Message.embed`) as signatures and become envelopes, which are written with the
outcome and sent after it, like those of `ctx.enqueue`. The arguments are Celery's: what follows a success gets the
result as its first positional argument, an errback the id of the job that died, and an immutable signature neither.
https://docs.celeryq.dev/en/stable/userguide/canvas.html
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.config.errors import UndecodableMessage
from penstock.config.settings import Settings
from penstock.ledger.rows import steps
from penstock.ledger.rows.jobs import RESENT
from penstock.producers.senders import scheme
from penstock.schemas.jobs.kind import NAME, Kind, Priority, Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.wire.codec import Envelope, Message, is_id, parse_time, seal
from penstock.schemas.wire.ids import new_id
from penstock.workers.brokers.stock.messages import DRAMATIQ
from penstock.workers.handlers.returns import Permanent

log = logging.getLogger("penstock.executor")

_FOLLOWED = ("callbacks", "errbacks", "chain")
_OURS = (steps.MARK, RESENT, DRAMATIQ)
_SEVERAL = {"celery.chain": "chain", "celery.group": "group"}
_REFUSED = {
    "celery.chord": "a chord",
    "celery.map": "map()",
    "celery.starmap": "starmap()",
    "celery.chunks": "chunks()",
}


@dataclass(slots=True)
class _Signature:
    """A signature of Celery's, read and checked.

    Attributes:
        type: `task`, `chain` or `group`; of the latter two `tasks` are the parts, in their order.
        chain: the rest of a chain, in Celery's order: the next one last.
    """

    type: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    immutable: bool
    id: str | None
    queue: str | None
    priority: int
    due_at: datetime | None
    expires_at: datetime | None
    callbacks: list[Any]
    errbacks: list[Any]
    chain: list[Any]
    tasks: list[Any]

    def arguments(self, results: list[Any]) -> list[Any]:
        return self.args if self.immutable else [*results, *self.args]


class CeleryCanvas:
    """Reads the signatures that are to follow a job, and makes envelopes of them."""

    def __init__(self, settings: Settings, registry: Registry = default_registry) -> None:
        self._registry, self._max_bytes = registry, settings.max_payload_bytes
        self._stock_queues = settings.stock_queues
        # As the dispatcher takes an unmodified client's priority: see brokers/stock/intake.py.
        self._other: Priority = "high" if scheme(settings.broker_url) == "rabbitmq" else "low"

    def check(self, embed: dict[str, Any]) -> None:
        """Refuse a job before it runs if what is to follow it cannot.

        Raises:
            UndecodableMessage: `unsupported`, `undecodable` or `invalid_payload`; the detail names what follows.
        """
        for name, value in embed.items():
            if value and name not in (*_FOLLOWED, *_OURS):
                raise _unsupported("a chord" if name == "chord" else repr(name))
        try:
            for name in ("callbacks", "errbacks"):
                for signature in _list(embed.get(name)):
                    self._check(signature, last=True)
            self._check_chain(list(reversed(_list(embed.get("chain")))), last=True)
        except RecursionError as error:
            raise UndecodableMessage("undecodable", "what is to follow it is nested too deeply") from error

    def after_success(self, message: Message, result: str | None) -> list[Envelope]:
        """The envelopes that follow a job with this result, JSON or None.

        Raises:
            Permanent: the result is too large to be an argument.
        """
        embed = message.embed or {}
        results = [None if result is None else json.loads(result)]
        try:
            envelopes = [
                envelope
                for signature in _list(embed.get("callbacks"))
                for envelope in self._follow(message, signature, results, [])
            ]
            if chain := _list(embed.get("chain")):
                envelopes += self._follow(message, chain[-1], results, chain[:-1])
        except UndecodableMessage as error:
            raise Permanent(f"what is to follow it cannot be sent: {error.detail}") from error
        return envelopes

    def after_death(self, message: Message) -> list[Envelope]:
        """The envelopes of the errbacks of a job that is a dead letter now."""
        embed = message.embed or {}
        try:
            return [
                envelope
                for signature in _list(embed.get("errbacks"))
                for envelope in self._follow(message, signature, [message.id], [])
            ]
        except Exception:
            # Not expected: `check` has read them. The dead letter must be recorded all the same.
            log.exception("the errbacks of job %s cannot be sent", message.id)
            return []

    # Checking.

    def _check(self, value: Any, *, last: bool) -> None:
        """Arguments: last: whether nothing follows it in its chain."""
        signature = _read(value)
        for callback in (*signature.callbacks, *signature.errbacks):
            self._check(callback, last=True)
        if signature.type == "group":
            if not last or signature.chain or signature.callbacks:
                raise _unsupported("a group that something follows, which is a chord,")
            for task in signature.tasks:
                self._check(task, last=True)
        elif signature.type == "chain":
            self._check_chain(signature.tasks, last=last and not signature.chain)
        elif (kind := self._registry.find(signature.task)) is not None:
            _check_count(kind, signature.arguments([None]))
        self._check_chain(list(reversed(signature.chain)), last=last)

    def _check_chain(self, tasks: list[Any], *, last: bool) -> None:
        for number, task in enumerate(tasks, 1):
            self._check(task, last=last and number == len(tasks))

    # Making envelopes.

    def _follow(self, message: Message, value: Any, results: list[Any], rest: list[Any]) -> Iterator[Envelope]:
        """Arguments: rest: what follows it in turn, the next one last."""
        signature = _read(value)
        match signature.type:
            case "chain":
                tasks = [_linked(task, errbacks=signature.errbacks) for task in signature.tasks]
                if tasks:
                    tasks[-1] = _linked(tasks[-1], callbacks=signature.callbacks)
                    results = signature.arguments(results)
                rest = [*rest, *signature.chain, *reversed(tasks)]
                if rest:
                    yield from self._follow(message, rest[-1], results, rest[:-1])
            case "group":
                for task in signature.tasks:
                    linked = _linked(task, errbacks=signature.errbacks)
                    yield from self._follow(message, linked, signature.arguments(results), [])
            case _:
                yield self._envelope(message, signature, results, rest)

    def _envelope(self, message: Message, signature: _Signature, results: list[Any], rest: list[Any]) -> Envelope:
        kind = self._registry.find(signature.task)
        args = signature.arguments(results)
        if kind is not None:
            _check_count(kind, args)
        inner = json.dumps([args, signature.kwargs])
        # The rest of a chain does not count: it came with the first message, and gets shorter.
        if len(inner) > self._max_bytes:
            detail = f"with the result of this job the arguments of {signature.task!r} are {len(inner)} bytes"
            raise UndecodableMessage("invalid_payload", f"{detail}, over the limit of {self._max_bytes}")
        embed = {
            "callbacks": signature.callbacks or None,
            "errbacks": signature.errbacks or None,
            "chain": [*rest, *signature.chain] or None,
            "chord": None,
        }
        priority: Priority = self._other if signature.priority else (kind.priority if kind else "normal")
        return seal(
            kind.name if kind else signature.task,
            kind.version if kind else 1,
            f"{inner[:-1]}, {json.dumps(embed)}]".encode(),
            signature.id or new_id(),
            kind.queue if kind else self._queue(signature, message),
            priority,
            tenant=message.tenant,
            traceparent=message.traceparent,
            due_at=signature.due_at,
            expires_at=signature.expires_at,
        )

    def _queue(self, signature: _Signature, message: Message) -> str:
        """The queue of a kind unknown here: the signature's, unless our workers do not consume it; else the job's own,
        whose worker makes a dead letter of a kind that it does not know either."""
        if signature.queue is None or signature.queue in self._stock_queues:
            return message.queue
        return signature.queue


def _check_count(kind: Kind, args: list[Any]) -> None:
    if len(args) > len(kind.job.model_fields):
        detail = f"{kind.name!r}, which is to follow it, would get {len(args)} positional arguments"
        raise UndecodableMessage("invalid_payload", f"{detail} for {len(kind.job.model_fields)} fields")


def _read(value: Any) -> _Signature:
    """Raises UndecodableMessage: `undecodable`, or `unsupported` where it is of another sort."""
    try:
        task, options = value["task"], value.get("options") or {}
        type_ = _type_of(task)
        args, kwargs = value.get("args") or [], value.get("kwargs") or {}
        tasks = _list(kwargs.get("tasks")) if type_ != "task" else []
        signature = _Signature(
            type=type_,
            task=task,
            args=list(args),
            kwargs=dict(kwargs),
            immutable=bool(value.get("immutable")),
            id=options.get("task_id"),
            queue=options.get("queue"),
            priority=int(options.get("priority") or 0),
            due_at=_due_at(options),
            expires_at=_expires_at(options),
            callbacks=_list(options.get("link")),
            errbacks=_list(options.get("link_error")),
            chain=_list(options.get("chain")),
            tasks=tasks,
        )
        if not is_id(task):  # a kind's name is a text of the same length
            raise ValueError(f"{task[:100]!r} is not a kind")
        if signature.id is not None and not is_id(signature.id):
            raise ValueError(f"task_id {signature.id!r} is not an id")
        if signature.queue is not None and NAME.fullmatch(signature.queue) is None:
            raise ValueError(f"{signature.queue!r} is not a valid queue name")
    except (UndecodableMessage, RecursionError):
        raise
    except Exception as error:  # a client's signature can be wrong in more ways than can be listed
        detail = f"a signature that is to follow it cannot be read: {type(error).__name__}: {error}"
        raise UndecodableMessage("undecodable", detail) from error
    if options.get("chord"):
        raise _unsupported("a chord")
    return signature


def _type_of(task: str) -> str:
    if task in _REFUSED:
        raise _unsupported(_REFUSED[task])
    return _SEVERAL.get(task, "task")


def _due_at(options: dict[str, Any]) -> datetime | None:
    if options.get("countdown"):
        return datetime.now(UTC) + timedelta(seconds=float(options["countdown"]))
    return parse_time(options.get("eta"))


def _expires_at(options: dict[str, Any]) -> datetime | None:
    expires = options.get("expires")
    if isinstance(expires, int | float):
        return datetime.now(UTC) + timedelta(seconds=expires)
    return parse_time(expires)


def _linked(value: Any, *, callbacks: list[Any] | None = None, errbacks: list[Any] | None = None) -> Any:
    """The signature with more to follow it."""
    if not callbacks and not errbacks:
        return value
    options = dict(value.get("options") or {})
    options["link"] = [*_list(options.get("link")), *(callbacks or [])]
    options["link_error"] = [*_list(options.get("link_error")), *(errbacks or [])]
    return {**value, "options": options}


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | dict):
        raise UndecodableMessage(
            "undecodable", f"what is to follow it is not a list of signatures but {type(value).__name__}"
        )
    return value if isinstance(value, list) else [value]


def _unsupported(feature: str) -> UndecodableMessage:
    return UndecodableMessage(
        "unsupported", f"{feature} is to follow it, which Penstock's workers do not do; it was not run"
    )
