"""Workflows over HTTP: seen, answered, cancelled and retried by callers whose jobs they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from support.gateways import Gateway, Open, problem
from support.ledgers import set_up, temporary_database
from support.servers.shared import SERVERS, need
from support.workflows import jobs as acme
from support.workflows.drive import move, result, rows_of, run, start, waiting
from typer.testing import CliRunner

from penstock.ledger.sql.tables import audit, jobs
from penstock.ledger.transitions.enqueue import enter
from penstock.ledger.workflows import commands
from penstock.schemas import Job, Outcome
from penstock.schemas.wire.codec import encode
from penstock.schemas.workflows import outlines
from penstock.workers.cli import app


class Client:
    """Speaks with one key."""

    def __init__(self, gateway: Gateway, **scope: Any) -> None:
        self._http, self._headers = gateway.client, gateway.key(**scope)

    def get(self, path: str = "", **query: Any) -> Any:
        return self._http.get(f"/v1/workflows{path}", headers=self._headers, params=query)

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        content = None if body is None else json.dumps(body)
        return self._http.post(f"/v1/workflows{path}", headers=self._headers, content=content, params=query)

    def listed(self, **query: Any) -> list[str]:
        return [workflow["id"] for workflow in self.get(**query).json()["workflows"]]


@pytest.fixture
def client(gateway: Gateway) -> Client:
    return Client(gateway)


def begin(gateway: Gateway, job: Job, *, moved: bool = True, **options: Any) -> str:
    """A workflow whose first steps run."""
    workflow_id = start(gateway.database, job, **options)
    if moved:
        move(gateway.database)
    return workflow_id


def end(gateway: Gateway, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Let sent jobs run with this outcome, and the next steps begin."""
    run(gateway.database, waiting(gateway.database), "w1", result, outcome=outcome)
    move(gateway.database)


def states(output: Any) -> dict[str, str]:
    return {step["name"]: step["state"] for step in output["steps"]}


def acts(gateway: Gateway, workflow_id: str) -> list[tuple[str, str, str, Any]]:
    columns = (audit.c.act, audit.c.actor, audit.c.subject_kind, audit.c.detail)
    select = sa.select(*columns).where(audit.c.subject == workflow_id).order_by(audit.c.id)
    rows = gateway.database.read(lambda connection: connection.execute(select).all())
    return [(*row[:3], json.loads(row.detail)) for row in rows]


def test_workflows_are_listed_by_state_and_kind_a_page_at_a_time(gateway: Gateway, client: Client) -> None:
    ids = [begin(gateway, acme.Nightly(regions=[])) for _ in range(3)]
    trip = begin(gateway, acme.Trip(), tenant="acme")
    end(gateway, Outcome.DEAD)
    assert client.listed() == [trip, *reversed(ids)]
    assert client.listed(kind="wf.nightly") == ids[::-1]
    assert client.listed(state="failed", kind="wf.trip") == [trip]
    assert client.listed(state="running") == []
    assert (client.listed(limit=2), client.listed(limit=2, before=ids[2])) == ([trip, ids[2]], [ids[1], ids[0]])
    [workflow] = client.get(kind="wf.trip").json()["workflows"]
    assert {name: workflow[name] for name in ("state", "queue", "tenant", "done", "steps", "error")} == {
        "state": "failed",
        "queue": "wf",
        "tenant": "acme",
        "done": 1,
        "steps": 5,
        "error": "step flight is dead: it failed",
    }
    for wrong in ({"state": "lost"}, {"limit": 0}, {"limit": 1001}, {"before": "\0"}):
        problem(client.get(**wrong), 422, "invalid-request")


def test_a_workflow_is_shown_as_the_command_line_shows_it(
    gateway: Gateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", gateway.settings.database_url)
    for job in (acme.Nightly(regions=["north", "south"]), acme.Trip()):
        workflow_id = begin(gateway, job, tenant="acme")
        end(gateway)
        printed = CliRunner().invoke(app, ["workflows", "show", workflow_id, "--format", "json"]).stdout
        output = client.get(f"/{workflow_id}").json()
        assert _timed(output) == _timed(json.loads(printed))
        assert (output["state"], output["tenant"], output["steps"][0]["state"]) == ("running", "acme", "succeeded")


def _timed(node: Any) -> Any:
    """With times as such: one writes `Z` and the other `+00:00`."""
    if isinstance(node, dict):
        return {
            name: datetime.fromisoformat(value) if value and name.endswith(("_at", "_since")) else _timed(value)
            for name, value in node.items()
        }
    return [_timed(item) for item in node] if isinstance(node, list) else node


def test_a_step_that_waits_is_answered_once(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Approved())
    end(gateway)
    assert states(client.get(f"/{workflow_id}").json())["approval"] == "waiting"
    path = f"/{workflow_id}/steps/approval/signal"
    answer = client.post(path, {"approved": True, "by": "Ada"})
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert "it is answered" in problem(client.post(path, {"approved": False}), 409, "wrong-state")["detail"]
    move(gateway.database)
    assert states(client.get(f"/{workflow_id}").json()) == {
        "report": "succeeded",
        "approval": "succeeded",
        "tell": "running",
    }
    [mail] = waiting(gateway.database)
    assert json.loads(mail.payload)["text"] == "True by Ada"
    assert acts(gateway, workflow_id) == [("signal", "key test", "workflow", {"step": "approval"})]


def test_a_signal_may_come_before_its_step_waits(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Approved(), moved=False)
    assert client.post(f"/{workflow_id}/steps/approval/signal", {"approved": True}).status_code == 200
    move(gateway.database)
    end(gateway)
    assert states(client.get(f"/{workflow_id}").json())["approval"] == "succeeded"


def test_an_answer_that_does_not_fit_is_refused_by_its_place(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Approved())
    path = f"/{workflow_id}/steps/approval/signal"
    answer = problem(client.post(path, {"approved": "maybe", "by": 1}), 422, "invalid-fields")
    assert [error["pointer"] for error in answer["errors"]] == ["#/approved", "#/by"]
    assert "maybe" not in json.dumps(answer)
    assert problem(client.post(path, True), 422, "invalid-fields")["errors"][0]["pointer"] == "#"
    assert problem(client.post(path), 422, "invalid-fields")["errors"][0]["pointer"] == "#/approved"
    headers = gateway.key() | {"Content-Type": "application/json"}
    for body in (b"{", b"NaN", b"[" * 10_000, b'"\xff"'):
        problem(gateway.client.post(f"/v1/workflows{path}", headers=headers, content=body), 400, "invalid-json")
    assert acts(gateway, workflow_id) == []


def test_a_signal_needs_a_step_that_waits(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Approved())
    for step in ("report", "nowhere"):
        body = problem(client.post(f"/{workflow_id}/steps/{step}/signal", {}), 409, "wrong-state")
        assert "those that do: approval" in body["detail"]
    client.post(f"/{workflow_id}/cancel")
    end(gateway)
    body = problem(client.post(f"/{workflow_id}/steps/approval/signal", {"approved": True}), 409, "wrong-state")
    assert "it is cancelled" in body["detail"]


def test_a_workflow_without_an_imported_definition_is_neither_signalled_nor_restarted(
    gateway: Gateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = begin(gateway, acme.Approved())
    monkeypatch.delitem(outlines, "wf.approved")
    body = problem(client.post(f"/{workflow_id}/steps/approval/signal", {"approved": "?"}), 409, "wrong-state")
    assert "what step 'approval' of workflow 'wf.approved' waits for" in body["detail"]
    assert client.post(f"/{workflow_id}/cancel").status_code == 200
    monkeypatch.undo()
    end(gateway)
    monkeypatch.delitem(outlines, "wf.approved")
    body = problem(client.post(f"/{workflow_id}/retry", {"all": True}), 409, "wrong-state")
    assert "no imported module defines workflow 'wf.approved'" in body["detail"]
    assert client.post(f"/{workflow_id}/retry").status_code == 200


def test_a_workflow_is_cancelled_with_or_without_compensation(gateway: Gateway, client: Client) -> None:
    for compensate, undone in (("true", "compensated"), ("false", "succeeded")):
        workflow_id = begin(gateway, acme.Trip())
        end(gateway)
        answer = client.post(f"/{workflow_id}/cancel", compensate=compensate).json()
        assert (answer["state"], answer["undo"]) == ("cancelling", compensate == "true")
        problem(client.post(f"/{workflow_id}/cancel"), 409, "wrong-state")
        move(gateway.database)
        end(gateway)
        output = client.get(f"/{workflow_id}").json()
        assert (output["state"], states(output)["flight"]) == ("cancelled", undone)
        problem(client.post(f"/{workflow_id}/cancel"), 409, "wrong-state")
        assert acts(gateway, workflow_id) == [("cancel", "key test", "workflow", {"undo": compensate == "true"})]


def test_retrying_a_failed_workflow_resumes_at_the_failed_step(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Nightly(regions=["north"]))
    problem(client.post(f"/{workflow_id}/retry"), 409, "wrong-state")
    end(gateway)
    for _ in range(2):  # attempts
        end(gateway, Outcome.DEAD)
    assert client.get(f"/{workflow_id}").json()["state"] == "failed"
    again = client.post(f"/{workflow_id}/retry").json()
    assert (again["state"], states(again)) == (
        "running",
        {"orders": "succeeded", "report": "running", "tell": "pending"},
    )
    assert acts(gateway, workflow_id) == [
        ("retry", "key test", "workflow", {"was": "failed", "from": None, "all": False, "edited": []})
    ]


def test_a_workflow_is_restarted_from_a_step_or_with_another_input(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Nightly(regions=["north"]))
    client.post(f"/{workflow_id}/cancel")
    end(gateway)
    again = client.post(f"/{workflow_id}/retry", {"from": "orders", "input": {"regions": ["south"]}}).json()
    assert states(again) == {"orders": "pending", "report": "pending", "tell": "pending"}
    move(gateway.database)
    [job] = [row for row in waiting(gateway.database) if row.kind == "wf.sync"]
    assert json.loads(job.payload) == {"regions": ["south"]}
    for _ in range(3):
        end(gateway)
    assert client.get(f"/{workflow_id}").json()["state"] == "succeeded"
    problem(client.post(f"/{workflow_id}/retry"), 409, "wrong-state")
    assert client.post(f"/{workflow_id}/retry", {"all": True}).json()["state"] == "running"
    assert [detail["edited"] for act, *_, detail in acts(gateway, workflow_id) if act == "retry"] == [["regions"], []]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"from": "orders", "all": True}, "#"),
        ({"from": 1}, "#/from"),
        ({"all": "yes"}, "#/all"),
        ({"input": []}, "#/input"),
        ({"input": {"regions": 3}}, "#/input/regions"),
        ({"input": {"colour": "red"}}, "#/input/colour"),
        ({"more": 1}, "#/more"),
        ([], "#"),
    ],
)
def test_a_retry_that_does_not_fit_is_refused_by_its_place(
    gateway: Gateway, client: Client, body: Any, pointer: str
) -> None:
    workflow_id = begin(gateway, acme.Nightly(regions=["north"]))
    client.post(f"/{workflow_id}/cancel")
    end(gateway)
    answer = problem(client.post(f"/{workflow_id}/retry", body), 422, "invalid-fields")
    assert [error["pointer"] for error in answer["errors"]] == [pointer]
    assert client.get(f"/{workflow_id}").json()["state"] == "cancelled"


def test_a_retry_from_a_step_that_is_not_there_is_refused(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Nightly(regions=["north"]))
    client.post(f"/{workflow_id}/cancel")
    end(gateway)
    body = problem(client.post(f"/{workflow_id}/retry", {"from": "nowhere"}), 409, "wrong-state")
    assert "it has orders, report, tell" in body["detail"]


def everything_of(client: Client, workflow_id: str) -> list[Any]:
    """Every request about a workflow."""
    acts = ("steps/approval/signal", "cancel", "retry")
    return [client.get(f"/{workflow_id}"), *(client.post(f"/{workflow_id}/{act}", {}) for act in acts)]


def test_an_unknown_workflow_is_not_found(gateway: Gateway, client: Client) -> None:
    envelope = encode(acme.Nightly(regions=[]))  # which no worker has started
    gateway.database.write(lambda connection: enter(connection, gateway.database, [envelope], datetime.now(UTC)))
    for workflow_id in ("nothing", "01a1fa6d-911e-7092-a9f7-1c48600b1702", envelope.id):
        for answer in everything_of(client, workflow_id):
            problem(answer, 404, "workflow-not-found")


@pytest.mark.parametrize(
    "scope",
    [
        {"kinds": ["wf.nightly"]},
        {"kinds": ["WF.*"]},
        {"kinds": ["wf.[b-z]*"]},
        {"queues": ["wf-*"]},
        {"tenants": ["other"]},
        {"tenants": ["ACME"]},
    ],
)
def test_workflows_outside_the_scopes_of_a_key_are_not_found(gateway: Gateway, scope: dict[str, Sequence[str]]) -> None:
    workflow_id = begin(gateway, acme.Approved(), tenant="acme")
    other = Client(gateway, **scope)
    assert other.listed() == []
    for answer in everything_of(other, workflow_id):
        problem(answer, 404, "workflow-not-found")
    assert rows_of(gateway.database, workflow_id)["approval"].result is None
    assert acts(gateway, workflow_id) == []
    assert Client(gateway, kinds=["wf.*"], queues=["w?"], tenants=["acme"]).listed() == [workflow_id]


@pytest.mark.parametrize("scope", ["kinds", "queues", "tenants"])
def test_an_empty_list_of_a_token_allows_nothing(gateway: Gateway, scope: str) -> None:
    begin(gateway, acme.Approved(), tenant="acme")
    assert commands.find(gateway.database, **{scope: ()}) == []  # type: ignore[arg-type]


def test_a_tenant_has_its_own(gateway: Gateway, client: Client) -> None:
    own, theirs, nobodys = (begin(gateway, acme.Approved(), tenant=tenant) for tenant in ("acme", "other", None))
    tenant = Client(gateway, tenants=["acme"])
    assert tenant.listed() == [own]
    assert client.listed() == [nobodys, theirs, own]
    assert tenant.post(f"/{own}/steps/approval/signal", {"approved": True}).status_code == 200
    assert tenant.post(f"/{own}/cancel").json()["state"] == "cancelling"
    end(gateway)
    assert tenant.post(f"/{own}/retry", {"from": "report"}).json()["state"] == "running"
    assert [act for act, *_ in acts(gateway, own)] == ["signal", "cancel", "retry"]
    move(gateway.database)
    select = sa.select(jobs.c.tenant).where(jobs.c.kind == "wf.report").distinct()
    tenants = gateway.database.read(lambda connection: set(connection.execute(select).scalars()))
    assert tenants == {"acme", "other", None}


def test_a_page_is_full_whatever_a_key_does_not_see(gateway: Gateway) -> None:
    own, theirs = [], []
    for _ in range(4):
        own.append(begin(gateway, acme.Approved()))
        theirs.append(begin(gateway, acme.Branching(rows=1)))
    key = Client(gateway, kinds=["wf.[ac-z]*"])
    assert key.listed(limit=3) == own[:0:-1]
    assert key.listed(limit=3, before=own[1]) == [own[0]]
    assert Client(gateway, kinds=["wf_%"]).listed() == []


def test_a_workflow_without_its_job_belongs_to_no_tenant(gateway: Gateway, client: Client) -> None:
    workflow_id = begin(gateway, acme.Approved(), tenant="acme")
    gateway.database.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.id == workflow_id)))
    assert client.listed() == [workflow_id]
    assert client.get(f"/{workflow_id}").json()["tenant"] is None
    assert Client(gateway, tenants=["acme"]).listed() == []


def test_workflows_need_a_key(gateway: Gateway) -> None:
    problem(gateway.client.get("/v1/workflows"), 401, "unauthenticated")
    problem(gateway.client.get("/v1/workflows/a"), 401, "unauthenticated")
    for path in ("cancel", "retry", "steps/approval/signal"):
        problem(gateway.client.post(f"/v1/workflows/a/{path}", json={}), 401, "unauthenticated")


@pytest.mark.parametrize("server", ["PostgreSQL", "MariaDB"])
def test_workflows_are_signalled_cancelled_and_retried_on_every_database(
    gateway: Gateway, open_gateway: Open, server: str
) -> None:
    need(server)
    with temporary_database(SERVERS[server]) as url:
        there = open_gateway(gateway.settings.model_copy(update={"database_url": set_up(url)}))
        tenant, capitals = Client(there, kinds=["wf.*"], tenants=["acme"]), Client(there, tenants=["ACME"])
        own, _theirs = (begin(there, acme.Approved(), tenant=tenant) for tenant in ("acme", "other"))
        assert (tenant.listed(), capitals.listed()) == ([own], [])
        assert tenant.post(f"/{own}/steps/approval/signal", {"approved": True}).status_code == 200
        assert tenant.post(f"/{own}/cancel").json()["state"] == "cancelling"
        end(there)
        assert tenant.get(f"/{own}").json()["state"] == "cancelled"
        assert tenant.post(f"/{own}/retry", {"all": True}).json()["state"] == "running"
        assert tenant.listed(state="running", before="z") == [own]
        there.stop()
        there.database.close()
