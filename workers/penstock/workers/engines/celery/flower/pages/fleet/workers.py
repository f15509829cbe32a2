"""`/workers`: the workers of both engines and the dispatchers, what each runs now, and orders to them."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from tornado.web import HTTPError

from penstock.config.errors import InvalidState, WorkerNotFound
from penstock.ledger.members.heartbeats import DISPATCHER
from penstock.ledger.members.orders import Order, give_order
from penstock.ledger.members.overview import MemberStatus, read_member, read_members
from penstock.ledger.rows import audit
from penstock.workers.engines.celery.flower.page import Act, Page, Parameters

_ANSWER_SECONDS = 5.0


class Workers(Page):
    path, name, tab, title = r"/workers", "penstock_workers", "workers", "Workers"
    template = "fleet/workers.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        members = read_members(self.ledger, self.settings_of_penstock.lease)
        return {
            "workers": [self._fields(status) for status in members],
            "alive": sum(status.state in ("running", "draining") for status in members if not _is_dispatcher(status)),
            "dispatchers": sum(status.state == "running" for status in members if _is_dispatcher(status)),
            "resizable": self.settings_of_penstock.remote_control == "all",
        }

    def _fields(self, status: MemberStatus) -> dict[str, Any]:
        scope = self.person.scope
        fields = status.fields()
        fields["busy"] = len(status.running)
        fields["queues"] = [queue for queue in fields["queues"] if scope.includes_queue(queue)]
        fields["running"] = [
            job for job in fields["running"] if scope.includes(job["kind"], job["queue"], job["tenant"])
        ]
        return fields


class _Order(Act):
    order: Order

    class Body(Parameters):
        reason: str | None = Field(default=None, max_length=255)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        self.need_whole_scope()
        [name] = path_arguments
        lease = self.settings_of_penstock.lease
        give_order(self.ledger, name, self.order, actor=self.person.name, lease=lease, reason=body.reason)
        return {"message": f"{name} is to {self.order}; what started its process may start another one"}


class Drain(_Order):
    path, order = r"/workers/([^/]+)/drain", "drain"


class Stop(_Order):
    path, order = r"/workers/([^/]+)/stop", "stop"


class Pool(Act):
    """More or fewer jobs at a time, by remote control, until the process ends."""

    path = r"/workers/([^/]+)/pool"

    class Body(Parameters):
        by: int = Field(ge=-1000, le=1000)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        self.need_whole_scope()
        [name] = path_arguments
        status = read_member(self.ledger, name, self.settings_of_penstock.lease)
        if status is None:
            raise WorkerNotFound(f"no worker {name!r} is on record")
        if status.state != "running" or _is_dispatcher(status) or not body.by:
            raise InvalidState(f"{name} is {status.state}; only a worker that runs can be given more or fewer slots")
        self.ledger.write(
            lambda connection: audit.write(
                connection,
                actor=self.person.name,
                act="resize",
                subject_kind="worker",
                subject=name,
                detail={"by": body.by},
            )
        )
        control = self.application.capp.control
        resize = control.pool_grow if body.by > 0 else control.pool_shrink
        answers = resize(abs(body.by), destination=[name], reply=True, timeout=_ANSWER_SECONDS)
        answer = next((answer[name] for answer in answers or () if name in answer), None)
        if answer is None:
            raise HTTPError(503, f"{name} does not answer remote control")
        if "error" in answer:
            raise InvalidState(answer["error"])
        return {"message": f"{name}: {answer['ok']} by {abs(body.by)}"}


def _is_dispatcher(status: MemberStatus) -> bool:
    return status.member.engine == DISPATCHER


HANDLERS = (Workers, Drain, Stop, Pool)
