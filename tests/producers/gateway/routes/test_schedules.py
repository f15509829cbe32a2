"""Schedules over HTTP: added, read, paused, run and backfilled, by callers that may send their jobs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import field_validator
from support.gateways import Gateway, Open, problem

from penstock.ledger.schedules import commands
from penstock.ledger.schedules.rules import Source, schedule_of_values
from penstock.ledger.sql.tables import audit, jobs
from penstock.schemas import Job, Sensitive


class Day(Job, kind="gateway.day", queue="days"):
    day: date
    pages: int = 1
    token: Sensitive[str] = ""

    @field_validator("day")
    @classmethod
    def _not_long_ago(cls, value: date) -> date:
        if value < date(2020, 1, 1):
            raise ValueError("no day before 2020")
        return value


DAILY = {"kind": "gateway.day", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "time_field": "day"}


class Client:
    """Speaks with one key."""

    def __init__(self, gateway: Gateway, **scope: Any) -> None:
        self._http, self._headers = gateway.client, gateway.key(**scope)

    def get(self, path: str = "", **query: Any) -> Any:
        return self._http.get(f"/v1/schedules{path}", headers=self._headers, params=query)

    def post(self, path: str = "", body: Any = None) -> Any:
        return self._http.post(f"/v1/schedules{path}", headers=self._headers, json=body)

    def delete(self, path: str) -> Any:
        return self._http.delete(f"/v1/schedules{path}", headers=self._headers)

    def add(self, **values: Any) -> str:
        name = f"s{uuid.uuid4().hex[:8]}"
        answer = self.post("", {"name": name, **DAILY, **values})
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/v1/schedules/{name}"
        return name


@pytest.fixture
def client(gateway: Gateway) -> Client:
    return Client(gateway)


def declared(gateway: Gateway, source: Source, name: str = "declared", **values: Any) -> str:
    """A schedule as a dispatcher enters one of the file or the code."""
    schedule = schedule_of_values(name, DAILY | values, source, "shop.jobs")
    row = commands.row_of(schedule, commands.first_time(schedule, datetime.now(UTC)))
    gateway.database.write(lambda connection: connection.execute(gateway.database.upsert(commands.schedules), [row]))
    return name


def acts(gateway: Gateway, name: str) -> list[tuple[str, str]]:
    select = sa.select(audit.c.act, audit.c.actor).where(audit.c.subject == name).order_by(audit.c.id)
    return gateway.database.read(lambda connection: [tuple(row) for row in connection.execute(select)])


def job_ids(gateway: Gateway) -> set[str]:
    return gateway.database.read(lambda connection: set(connection.execute(sa.select(jobs.c.id)).scalars()))


def test_a_schedule_is_made_shown_paused_resumed_and_removed(gateway: Gateway, client: Client) -> None:
    name = client.add(payload={"pages": 2, "token": "hidden"}, catch_up="2h")
    output = client.get(f"/{name}").json()
    assert (output["kind"], output["when"], output["source"], output["state"]) == (
        "gateway.day",
        "0 3 * * *",
        "made",
        "active",
    )
    assert output["settings"]["payload"] == {"pages": 2, "token": "***"}
    assert output["settings"]["catch_up"] == "PT2H"
    assert [schedule["name"] for schedule in client.get().json()["schedules"]] == [name]
    assert datetime.fromisoformat(output["next_at"]) > datetime.now(UTC)

    paused = client.post(f"/{name}/pause").json()
    assert (paused["state"], paused["next_at"]) == ("paused", None)
    assert "is paused since" in problem(client.post(f"/{name}/pause"), 409, "wrong-state")["detail"]
    assert client.post(f"/{name}/resume").json()["state"] == "active"
    problem(client.post(f"/{name}/resume"), 409, "wrong-state")

    assert client.delete(f"/{name}").status_code == 204
    problem(client.get(f"/{name}"), 404, "schedule-not-found")
    problem(client.delete(f"/{name}"), 404, "schedule-not-found")
    assert acts(gateway, name) == [(act, "key test") for act in ("add", "pause", "resume", "remove")]


def test_the_next_times_are_those_of_the_clock_of_its_zone(client: Client) -> None:
    times = client.get(f"/{client.add()}/next", count=3).json()["times"]
    assert ["T03:00:00" in time["at"] for time in times] == [True] * 3
    assert len(client.get(f"/{client.add(every='36525d', cron=None)}/next", count=100).json()["times"]) < 100
    problem(client.get(f"/{client.add()}/next", count=101), 422, "invalid-request")


def test_running_a_schedule_makes_a_job_that_can_be_followed(gateway: Gateway, client: Client) -> None:
    name = client.add()
    client.post(f"/{name}/pause")
    answer = client.post(f"/{name}/run")
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=gateway.key()).json()["kind"] == "gateway.day"
    [run] = client.get(f"/{name}/runs").json()["runs"]
    assert (run["job_id"], run["cause"], run["state"]) == (job_id, "run", "scheduled")
    assert client.get(f"/{name}").json()["last_job_id"] == job_id
    assert acts(gateway, name)[-1] == ("run", "key test")


def test_a_backfill_makes_what_is_missing_of_a_span(gateway: Gateway, client: Client) -> None:
    name = client.add()
    span = {"from": "2026-03-27", "to": "2026-03-31T03:00"}  # by the clock of Berlin; the last is not taken itself
    assert client.post(f"/{name}/backfill", span | {"dry_run": True}).json()["made"] == 4
    assert job_ids(gateway) == set()
    backfilled = client.post(f"/{name}/backfill", span).json()
    assert [time["at"] for time in backfilled["times"]] == [
        "2026-03-27T02:00:00Z",
        "2026-03-28T02:00:00Z",
        "2026-03-29T01:00:00Z",
        "2026-03-30T01:00:00Z",
    ]
    assert job_ids(gateway) == {time["job_id"] for time in backfilled["times"]}
    again = client.post(f"/{name}/backfill", span | {"to": "2026-03-31T03:00:01"}).json()
    assert (again["made"], [time["skipped"] for time in again["times"]]) == (1, ["fired"] * 4 + [None])
    assert len(job_ids(gateway)) == 5


def test_a_span_that_cannot_be_made_up_for_is_refused(gateway: Gateway, client: Client, open_gateway: Open) -> None:
    path = f"/{client.add()}/backfill"

    def refused(body: Any, pointer: str, who: Client = client) -> str:
        [error] = problem(who.post(path, body), 422, "invalid-fields")["errors"]
        assert error["pointer"] == pointer
        return str(error["detail"])

    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert "has not come yet" in refused({"from": "2026-01-01", "to": tomorrow}, "#/to")
    assert "is not before" in refused({"from": "2026-01-02", "to": "2026-01-01"}, "#/to")
    assert "is not before" in refused({"from": tomorrow}, "#/from")
    assert "write 2026-03-01" in refused({"from": "yesterday"}, "#/from")
    assert "write 2026-03-01" in refused({"from": 5}, "#/from")
    assert "its kind refuses that time" in refused({"from": "2019-12-30", "to": "2020-01-03"}, "#/to")
    refused({"from": "2026-01-01", "more": 1}, "#/more")
    refused({}, "#/from")
    strict = Client(open_gateway(max_batch=3))
    assert "more than 3 times" in refused({"from": "2026-01-01", "to": "2026-01-05"}, "#/to", strict)
    assert job_ids(gateway) == set()


@pytest.mark.parametrize(
    ("values", "pointer", "detail"),
    [
        ({"kind": "gateway.nowhere"}, "#/kind", "no kind is named that"),
        ({"cron": "61 * * * *"}, "#/cron", "61"),
        ({"cron": "0 0 31 2 *"}, "#/cron", "'0 0 31 2 *'"),
        ({"timezone": "Mars/Base"}, "#/timezone", "unknown time zone"),
        ({"calendar": "XX", "closed": "skip"}, "#/calendar", "unknown calendar"),
        ({"calendar": "DE"}, "#", "go together"),
        ({"every": "1d"}, "#", "give one of cron, every and at"),
        ({"cron": None}, "#", "give one of cron, every and at"),
        ({"cron": None, "every": 60}, "#/every", 'write "30s"'),
        ({"cron": None, "every": "0.05s"}, "#/every", "0.1s or more"),
        ({"cron": None, "times": "those of the sun"}, "#/times", "no code has registered them"),
        ({"queue": "two words"}, "#/queue", "must be letters"),
        ({"expires_in": "0s"}, "#/expires_in", "more than 0s"),
        ({"cron": None, "every": "9999999d"}, "#", "passed"),
        ({"cron": None, "at": "2020-01-01"}, "#/at", "has passed"),
        ({"cron": None, "at": "9999-12-31T23:59"}, "#/at", "a hundred years"),
        ({"catch_up": "999999d"}, "#/catch_up", "100 years"),
        ({"jitter": "2d"}, "#/jitter", "between 0s and 1d"),
        ({"overlap": "sometimes"}, "#/overlap", "'skip'"),
        ({"time_field": "month"}, "#/time_field", "no field 'month'"),
        ({"payload": {"pages": "many"}}, "#/payload", "pages"),
        ({"payload": {"day": "2026-01-01", "pages": "many"}, "time_field": None}, "#/payload/pages", "integer"),
        ({"payload": {}, "time_field": None}, "#/payload/day", "required"),
        ({"name": "a/b"}, "#/name", "pattern"),
        ({"colour": "red"}, "#/colour", "not permitted"),
    ],
)
def test_a_wrong_one_is_refused_by_its_key(client: Client, values: dict[str, Any], pointer: str, detail: str) -> None:
    body = problem(client.post("", {"name": "wrong", **DAILY, **values}), 422, "invalid-fields")
    [error] = body["errors"]
    assert error["pointer"] == pointer
    assert detail in error["detail"]
    assert client.get().json() == {"schedules": []}


def test_a_name_is_taken_once(client: Client) -> None:
    name = client.add()
    assert "already" in problem(client.post("", {"name": name, **DAILY}), 409, "wrong-state")["detail"]


@pytest.mark.parametrize(("source", "where"), [("file", "stands in penstock.toml"), ("code", "declared in code")])
def test_a_declared_one_is_paused_and_run_but_not_removed_or_changed(
    gateway: Gateway, client: Client, source: Source, where: str
) -> None:
    name = declared(gateway, source)
    assert client.get(f"/{name}").json()["source"] == source
    assert client.post(f"/{name}/pause").json()["state"] == "paused"
    assert client.post(f"/{name}/resume").json()["state"] == "active"
    assert client.post(f"/{name}/run").status_code == 202
    assert where in problem(client.delete(f"/{name}"), 409, "wrong-state")["detail"]
    problem(client.post("", {"name": name, **DAILY}), 409, "wrong-state")
    assert client.get(f"/{name}").json()["source"] == source


def test_a_wrong_one_says_why_it_makes_no_job(gateway: Gateway, client: Client) -> None:
    name = declared(gateway, "file", kind="gateway.nowhere")
    output = client.get(f"/{name}").json()
    assert (output["state"], "gateway.nowhere" in output["error"]) == ("wrong", True)
    for path, body in (("run", None), ("backfill", {"from": "2026-01-01"})):
        assert "gateway.nowhere" in problem(client.post(f"/{name}/{path}", body), 409, "wrong-state")["detail"]
    old = client.add(cron=None, at="2099-12-31T12:00")
    assert client.get(f"/{old}/next").json()["times"][0]["utc"] == "2099-12-31T11:00:00Z"
    declared(gateway, "made", "ancient", cron=None, at="2000-01-01")
    assert client.get("/ancient").json()["state"] == "over"
    assert client.get("/ancient/next").json() == {"times": []}


@pytest.mark.parametrize("scope", [{"kinds": ["gateway.sync"]}, {"queues": ["syncs"]}, {"tenants": ["acme"]}])
def test_schedules_outside_the_scopes_of_a_key_are_not_found(
    gateway: Gateway, client: Client, scope: dict[str, Sequence[str]]
) -> None:
    name, other = client.add(), Client(gateway, **scope)
    declared(gateway, "file", kind="gateway.nowhere")
    assert other.get().json() == {"schedules": []}
    answers = [other.get(f"/{name}{path}") for path in ("", "/next", "/runs")]
    answers += [other.post(f"/{name}/{act}", {"from": "2026-01-01"}) for act in ("pause", "resume", "run", "backfill")]
    for answer in [*answers, other.delete(f"/{name}")]:
        problem(answer, 404, "schedule-not-found")
    reason = {"queues": "queue-not-allowed", "tenants": "tenant-not-allowed"}.get(*scope, "kind-not-allowed")
    problem(other.post("", {"name": "mine", **DAILY}), 403, reason)
    assert client.get(f"/{name}").json()["state"] == "active"
    assert job_ids(gateway) == set()
    assert acts(gateway, name) == [("add", "key test")]


def test_a_key_for_the_kind_has_its_schedules(gateway: Gateway, client: Client) -> None:
    own = Client(gateway, kinds=["gateway.d*"], queues=["days"])
    name = own.add()
    client.add(kind="gateway.sync", payload={"account": "a"}, time_field=None)
    assert [schedule["name"] for schedule in own.get().json()["schedules"]] == [name]
    assert len(client.get().json()["schedules"]) == 2
    assert own.post(f"/{name}/run").status_code == 202


def test_schedules_need_a_key(gateway: Gateway) -> None:
    problem(gateway.client.get("/v1/schedules"), 401, "unauthenticated")
    problem(gateway.client.post("/v1/schedules/a/run"), 401, "unauthenticated")
