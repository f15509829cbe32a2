"""Sending: one by one from one thread or loop, and many in a call."""

from __future__ import annotations

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.plan import Plan
from benchmarks.session import session
from benchmarks.tables import BEST_PEER, Requirement, Table

OURS = "Penstock"
BULK = ", a thousand a call"
_WITH_BULK = ("apps.ours", "apps.bare", "peers.streaq_app", "peers.rq_app")


def redis(plan: Plan) -> list[Table]:
    single = Table("Enqueued one by one, Redis", "jobs/s")
    single.requirements = [Requirement(OURS, who.BARE.name, 0.85), Requirement(OURS, BEST_PEER, 1.0)]
    bulk = Table("Enqueued a thousand a call, Redis; peers without such a call one by one", "jobs/s")
    bulk.requirements = [Requirement(OURS + BULK, f"{BEST_PEER}'s loop", 6.0)]
    names = {
        who.ours("dramatiq"): OURS,
        who.BARE: who.BARE.name,
        who.BARE_HIREDIS: who.BARE_HIREDIS.name,
        who.celery("solo", 1): "Celery",
        who.dramatiq(8): "Dramatiq",
        who.taskiq("list"): "Taskiq, list",
        who.taskiq("stream"): "Taskiq, stream",
        who.saq(10): "SAQ",
        who.arq(100): "arq",
        who.huey(8): "Huey",
        who.streaq(100): "streaQ",
        who.rq(): "RQ",
    }
    count = plan.jobs(5000)

    def measure(entrant: Entrant) -> None:
        with session(plan.servers, entrant) as running:
            name, peer = names[entrant], not entrant.is_ours and entrant.app != who.BARE.app
            sent = running.send("loop", count)
            single.add(name, count / sent["seconds"], peer=peer, cpu=sent["cpu_seconds"] / count * 1e6)
            if entrant.app in _WITH_BULK:
                many = plan.jobs(20_000 if entrant.is_ours else 5000, 1000)
                sent = running.send("many", many)
                bulk.add(name + BULK, many / sent["seconds"], peer=peer, cpu=sent["cpu_seconds"] / many * 1e6)

    plan.rounds_of(plan.available(names), measure)
    if single.best_peer is not None:
        loop = f"{BEST_PEER}'s loop"
        bulk.values[loop] = single.values[single.best_peer]
        bulk.notes.append(f"the best peer's loop is that of {single.best_peer}")
    return [single, bulk]


def rabbitmq(plan: Plan) -> list[Table]:
    single = Table("Enqueued one by one, RabbitMQ, each confirmed by the broker", "jobs/s")
    single.notes.append("Celery does not wait for confirms unless set to; here it is set to, as Dramatiq is")
    bulk = Table("Enqueued a thousand a call, RabbitMQ, confirmed; beside a loop that is not", "jobs/s")
    if plan.servers.amqp_url is None:
        single.notes.append("RabbitMQ is not reachable")
        return [single, bulk]
    unconfirmed = who.dramatiq(8, confirms=False)
    names = {
        who.ours("dramatiq"): OURS,
        who.celery("solo", 1): "Celery",
        who.dramatiq(8): "Dramatiq",
        unconfirmed: "Dramatiq, one by one, without confirms",
        who.taskiq("RabbitMQ"): "Taskiq",
        who.faststream(100): "FastStream",
    }
    bulk.requirements = [Requirement(OURS + BULK, names[unconfirmed], 1.0)]
    count = plan.jobs(2000)

    def measure(entrant: Entrant) -> None:
        with session(plan.servers, entrant, broker="rabbitmq") as running:
            name, table = names[entrant], bulk if entrant is unconfirmed else single
            sent = running.send("loop", count)
            table.add(name, count / sent["seconds"], peer=not entrant.is_ours, cpu=sent["cpu_seconds"] / count * 1e6)
            if entrant.is_ours:
                many = plan.jobs(20_000, 1000)
                sent = running.send("many", many)
                bulk.add(name + BULK, many / sent["seconds"], peer=False, cpu=sent["cpu_seconds"] / many * 1e6)

    plan.rounds_of(plan.available(names), measure)
    return [single, bulk]
