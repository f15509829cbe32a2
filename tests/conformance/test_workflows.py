"""A workflow whose steps run on two engines, over RabbitMQ."""

from __future__ import annotations

import uuid
from pathlib import Path

import sqlalchemy as sa
from support.polling import WAIT_SECONDS
from support.servers.shared import AMQP_URL, delete_rabbitmq, need
from support.stack import TESTS, Stack
from support.workflows import jobs as workflow_jobs

from penstock.ledger.sql.tables import jobs


def test_a_workflow_s_steps_run_on_both_engines(tmp_path: Path) -> None:
    need("RabbitMQ")
    prefix = f"t{uuid.uuid4().hex[:10]}"
    stack = Stack("celery", AMQP_URL, prefix, tmp_path, lease_seconds=30)
    code = {"PYTHONPATH": str(TESTS)}
    try:
        stack.run(["dispatcher", "--import", "support.workflows.jobs"], **code)
        for engine, queue in (("celery", "wf"), ("dramatiq", "wf-reports")):
            stack.run(["worker", "--engine", engine, "--queues", queue, "--import", "support.workflows.jobs"], **code)
        status = stack.producer.enqueue(workflow_jobs.Nightly(regions=["north", "south", "west"])).wait(WAIT_SECONDS)
        assert (status.state, status.result) == ("succeeded", "sent 3"), stack.logs()
        run = sa.select(jobs.c.kind, jobs.c.worker).where(jobs.c.kind.in_(["wf.sync", "wf.report", "wf.mail"]))
        rows = stack.database.read(lambda connection: connection.execute(run).all())
        workers = {row.kind: {step.worker for step in rows if step.kind == row.kind} for row in rows}
        assert len(rows) == 5
        assert workers["wf.sync"] == workers["wf.mail"] != workers["wf.report"]
    finally:
        stack.stop()
        delete_rabbitmq(AMQP_URL, prefix)
