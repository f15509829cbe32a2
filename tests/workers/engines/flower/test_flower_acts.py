"""Acts in Flower: who may do them, and the lines of the audit log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_jobs import Add, Sleep
from running import Running
from served import Flower, flower
from support.polling import until
from tornado.web import create_signed_value

from penstock.ledger.rows import audit
from penstock.ledger.rows.audit import Act
from penstock.schemas.states import State
from penstock.workers.local.up.redis_server import free_port

VIEWER = "ada:looks"


@pytest.fixture(params=["celery", "dramatiq"])
def worker(request: pytest.FixtureRequest, start_worker: Callable[..., Running]) -> Running:
    return start_worker(request.param)


@pytest.fixture
def served(worker: Running, tmp_path: Path) -> Iterator[Flower]:
    with flower(worker, tmp_path, free_port(), PENSTOCK_FLOWER_ADMINS='["op"]', FLOWER_BASIC_AUTH=VIEWER) as served:
        knows(served, worker)
        yield served


def knows(served: Flower, worker: Running, login: str = "op:secret") -> None:
    until(lambda: worker.name in (served.get("api/workers?refresh=1", login) or {}), "the worker in Flower")


def acts(worker: Running) -> list[Act]:
    return audit.find(worker.database)


def urls(worker: Running) -> dict[str, str]:
    """The address of each act → its word in the log."""
    return {
        f"api/worker/pool/restart/{worker.name}": "pool restart",
        f"api/worker/pool/grow/{worker.name}?n=2": "pool grow",
        f"api/worker/pool/shrink/{worker.name}?n=2": "pool shrink",
        f"api/worker/pool/autoscale/{worker.name}?min=1&max=3": "pool autoscale",
        f"api/worker/queue/add-consumer/{worker.name}?queue=other": "add consumer",
        f"api/worker/queue/cancel-consumer/{worker.name}?queue=other": "cancel consumer",
        f"api/task/timeout/engines.add?workername={worker.name}&hard=5": "time limit",
        f"api/task/rate-limit/engines.add?workername={worker.name}&ratelimit=1": "rate limit",
        "api/task/revoke/job-1": "revoke",
        "api/task/revoke/job-2?terminate=true": "terminate",
        "api/task/abort/job-3": "abort",
        "api/task/apply/engines.add": "send",
        "api/task/async-apply/engines.add": "send",
        "api/task/send-task/engines.add": "send",
        f"api/worker/shutdown/{worker.name}": "shutdown",
    }


def test_those_who_only_look_are_refused_every_act_by_every_way(worker: Running, served: Flower) -> None:
    handle = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in worker.active(), "the running job")
    for url in (*urls(worker), f"api/task/revoke/{handle.id}?terminate=true"):
        assert served.post(url, VIEWER) == 403
        path, _, query = url.partition("?")
        assert served.post(f"{path}/?{query}", VIEWER) in (403, 404)
        assert served.post(f"/{url}", VIEWER) in (403, 404)
        for method in ("PUT", "DELETE", "PATCH"):
            assert served.ask(method, url, VIEWER) in (403, 405)
        assert served.ask("GET", url, VIEWER, X_HTTP_Method_Override="POST") in (400, 404, 405)
        assert served.ask("GET", url, VIEWER, Upgrade="websocket", Connection="Upgrade") in (400, 404, 405)
        for override in ("_method=POST", "_method=GET"):
            assert served.post(f"{path}?{query}&{override}", VIEWER, X_HTTP_Method_Override="GET") == 403
        assert served.post(url, "ada:wrong") == 401
        assert served.post(url, "") == 401
    assert handle.id in worker.active()
    assert worker.process.poll() is None
    assert acts(worker) == []
    assert worker.name in served.get("api/workers?refresh=1", VIEWER), "they may look"
    columns = "draw=1&start=0&length=10&order[0][column]=0&columns[0][data]=name"
    assert "data" in served.post(f"tasks/datatable?{columns}", VIEWER)
    page, admins = (served.get(f"worker/{worker.name}", login) for login in (VIEWER, "op:secret"))
    assert "Shut Down" not in page
    assert "Shut Down" in admins


def test_acts_are_in_the_audit_log_with_actor_and_subject(worker: Running, served: Flower) -> None:
    handle = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in worker.active(), "the running job")
    assert served.post(f"api/task/revoke/{handle.id}?terminate=true") == {"message": f"Revoked '{handle.id}'"}
    until(lambda: handle.status().state is State.CANCELLED, "the cancellation")
    [line] = audit.find(worker.database, subject=handle.id)
    assert (line.actor, line.act, line.subject_kind) == ("op", "terminate", "job")
    assert line.detail == {"by": "flower", "terminate": "true"}

    for url, word in urls(worker).items():
        body = json.dumps({"kwargs": {"a": "secret-payload"}}).encode() if word == "send" else b""
        served.post(url, body=body)
        newest = until(lambda word=word: (lines := acts(worker)) and lines[0].act == word and lines[0], word)
        assert newest.actor == "op"
        assert newest.subject in url
        assert "secret-payload" not in str(newest)
    until(lambda: worker.process.poll() is not None, "the end of the worker")
    [grow] = audit.find(worker.database, acts=["pool grow"])
    assert (grow.subject, grow.detail) == (worker.name, {"by": "flower", "n": "2"})
    until(lambda: audit.find(worker.database, acts=["rate limit"])[0].detail.get("refused"), "the refusal")


def test_nothing_is_done_that_cannot_be_recorded(worker: Running, tmp_path: Path) -> None:
    with flower(worker, tmp_path, free_port(), PENSTOCK_DATABASE_URL=f"sqlite:///{tmp_path}/none/set-up.db") as served:
        knows(served, worker)
        assert served.post(f"api/worker/shutdown/{worker.name}") == 503
    assert worker.producer.enqueue(Add(a=1)).result(timeout=60) == 2


def test_acts_behind_a_prefix_are_guarded_as_well(worker: Running, tmp_path: Path) -> None:
    more = {"PENSTOCK_FLOWER_ADMINS": "[]", "FLOWER_URL_PREFIX": "monitor"}
    with flower(worker, tmp_path, free_port(), **more) as served:
        until(lambda: worker.name in (served.get("monitor/api/workers?refresh=1") or {}), "the worker in Flower")
        for path in ("monitor/api/worker/shutdown", "api/worker/shutdown", "monitor//api/worker/shutdown"):
            assert served.post(f"{path}/{worker.name}") in (403, 404)
        assert served.post(f"monitor/api/worker/shutdown/{worker.name}") == 403
    assert worker.producer.enqueue(Add(a=1)).result(timeout=60) == 2


def test_users_by_oauth_are_known_by_their_address(worker: Running, tmp_path: Path) -> None:
    oauth = {
        "PENSTOCK_FLOWER_BASIC_AUTH": "",
        "FLOWER_AUTH": ".*@example.com",
        "FLOWER_AUTH_PROVIDER": "flower.views.auth.GithubLoginHandler",
        "FLOWER_COOKIE_SECRET": "test-secret",
        "PENSTOCK_FLOWER_ADMINS": '["ada@example.com"]',
    }

    def cookies(user: str) -> dict[str, Any]:
        return {"Cookie": f"user={create_signed_value('test-secret', 'user', user).decode()}", "Authorization": "x"}

    with flower(worker, tmp_path, free_port(), **oauth) as served:
        assert served.post("api/task/revoke/job-1", "") == 403
        assert served.post("api/task/revoke/job-1", "", **cookies("bob@example.com")) == 403
        assert served.post("api/task/revoke/job-1", "", **cookies("ada@elsewhere.com")) == 403
        assert acts(worker) == []
        assert served.post("api/task/revoke/job-1", "", **cookies("ada@example.com")) == {"message": "Revoked 'job-1'"}
    assert [(line.actor, line.subject) for line in acts(worker)] == [("ada@example.com", "job-1")]
