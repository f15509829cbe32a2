"""Acts in Flower: who may do them, what they do, and the lines of the audit log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_jobs import Add, Aside, Sleep
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
    more = {"PENSTOCK_FLOWER_ADMINS": '["op"]', "FLOWER_BASIC_AUTH": VIEWER}
    with flower(worker, tmp_path, free_port(), imports=["engine_jobs"], **more) as served:
        knows(served, worker)
        yield served


def knows(served: Flower, worker: Running, login: str = "op:secret", prefix: str = "") -> None:
    until(lambda: worker.name in (served.get(f"{prefix}api/workers", login) or {}), "the worker in Flower")


def acts(worker: Running) -> list[Act]:
    return audit.find(worker.database)


def on_workers(worker: Running) -> dict[str, str]:
    """The address of each act on a worker → its word in the log."""
    return {
        f"api/worker/pool/grow/{worker.name}?n=2": "pool grow",
        f"api/worker/pool/shrink/{worker.name}?n=2": "pool shrink",
        f"api/worker/queue/add-consumer/{worker.name}?queue=other": "add consumer",
        f"api/worker/queue/cancel-consumer/{worker.name}?queue=other": "cancel consumer",
        f"api/worker/shutdown/{worker.name}": "shutdown",
    }


def without_meaning(worker: Running) -> list[str]:
    return [
        f"api/worker/pool/restart/{worker.name}",
        f"api/worker/pool/autoscale/{worker.name}?min=1&max=3",
        f"api/task/timeout/engines.add?workername={worker.name}&hard=5",
        f"api/task/rate-limit/engines.add?workername={worker.name}&ratelimit=1",
    ]


def on_jobs(job_id: str) -> list[str]:
    return [
        f"api/task/revoke/{job_id}",
        f"api/task/revoke/{job_id}?terminate=true",
        f"api/task/abort/{job_id}",
        "api/task/apply/engines.add",
        "api/task/async-apply/engines.add",
        "api/task/send-task/engines.add",
    ]


def test_those_who_only_look_are_refused_every_act_by_every_way(worker: Running, served: Flower) -> None:
    handle = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in worker.active(), "the running job")
    for url in (*on_workers(worker), *without_meaning(worker), *on_jobs(handle.id)):
        assert served.post(url, VIEWER) == 403
        path, _, query = url.partition("?")
        assert served.post(f"{path}/?{query}", VIEWER) in (403, 404)
        assert served.post(f"/{url}", VIEWER) in (403, 404)
        assert served.post(url.replace("api/", "api/./", 1), VIEWER) in (403, 404)
        assert served.post(url.replace("api/", "API/", 1), VIEWER) in (403, 404)
        assert served.post(url.replace("api/", "%61pi/", 1), VIEWER) in (403, 404)
        for method in ("PUT", "DELETE", "PATCH"):
            assert served.ask(method, url, VIEWER) in (403, 405)
        assert served.ask("GET", url, VIEWER, X_HTTP_Method_Override="POST") in (400, 403, 404, 405)
        assert served.ask("GET", url, VIEWER, Upgrade="websocket", Connection="Upgrade") in (400, 403, 404, 405)
        for override in ("_method=POST", "_method=GET"):
            assert served.post(f"{path}?{query}&{override}", VIEWER, X_HTTP_Method_Override="GET") == 403
        assert served.post(url, "ada:wrong-password") in (401, 429)
        assert served.post(url, "") == 401
    assert handle.id in worker.active()
    assert worker.process.poll() is None
    assert acts(worker) == []
    assert worker.name in served.get("api/workers", VIEWER), "they may look"
    columns = "draw=1&start=0&length=10&order[0][column]=0&columns[0][data]=name"
    assert "data" in served.post(f"tasks/datatable?{columns}", VIEWER)
    page, admins = (served.get(f"worker/{worker.name}", login) for login in (VIEWER, "op:secret"))
    assert "Shut Down" not in page
    assert "Shut Down" in admins


def test_revoking_cancels_what_waits_and_terminating_what_runs(worker: Running, served: Flower) -> None:
    waits, runs = worker.producer.enqueue(Aside()), worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: runs.id in worker.active(), "the running job")
    assert served.post(f"api/task/revoke/{runs.id}") == 409, "it runs: that takes terminate"
    assert served.post(f"api/task/revoke/{waits.id}") == {"message": f"Revoked '{waits.id}'", "state": "cancelled"}
    assert waits.status().state is State.CANCELLED
    assert served.post(f"api/task/revoke/{runs.id}?terminate=true")["state"] == "running"
    until(lambda: runs.status().state is State.CANCELLED, "the cancellation")
    until(lambda: not worker.active(), "an idle worker")
    aborted = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: aborted.id in worker.active(), "the running job")
    served.post(f"api/task/abort/{aborted.id}")
    until(lambda: aborted.status().state is State.CANCELLED, "the cancellation")
    assert served.post(f"api/task/revoke/{waits.id}") == 409, "it has ended"
    assert [(line.actor, line.act, line.subject) for line in reversed(acts(worker))] == [
        ("op", "cancel", job.id) for job in (waits, runs, aborted)
    ]


def test_a_job_that_was_revoked_in_the_queue_does_not_run(worker: Running, served: Flower) -> None:
    waits = worker.producer.enqueue(Aside())
    served.post(f"api/task/revoke/{waits.id}")
    last = worker.producer.enqueue(Aside())
    worker.ask("add_consumer", queue="engines-2")
    last.wait(timeout=60)
    assert waits.status().state is State.CANCELLED
    assert waits.status().attempt == 0


def test_sending_enqueues_a_job_of_a_known_kind(worker: Running, served: Flower) -> None:
    for way in ("send-task", "async-apply", "apply"):
        body = json.dumps({"kwargs": {"a": 20, "b": 22, "card": "secret-card"}, "key": way}).encode()
        answer = served.post(f"api/task/{way}/engines.add", body=body)
        handle = worker.producer.handle(answer["task-id"])
        assert handle.result(timeout=60) == 42
        if way == "apply":
            assert (answer["state"], answer["result"]) == ("SUCCESS", 42)
        [line] = [line for line in acts(worker) if line.detail["key"] == way]
        assert (line.actor, line.act, line.subject) == ("op", "send", "engines.add")
        assert line.detail == {"by": "flower", "queue": "engines", "key": way, "job": handle.id}
        assert "secret" not in str(line)


REFUSED: list[tuple[str, dict[str, Any], int]] = [
    ("engines.none", {}, 403),
    ("engines.add", {"kwargs": {"a": "many"}}, 400),
    ("engines.add", {"kwargs": {}}, 400),
    ("engines.add", {"args": [1]}, 400),
    ("engines.add", {"kwargs": [1]}, 400),
    ("engines.add", {"kwargs": {"a": 1}, "link": "x"}, 400),
    ("engines.add", {"kwargs": {"a": 1}, "queue": "typo"}, 400),
    ("engines.add", {"kwargs": {"a": 1}, "countdown": "soon"}, 400),
    ("engines.add", {"kwargs": {"a": 1}, "eta": "yesterday"}, 400),
]


def test_what_cannot_be_sent_is_refused_and_nothing_is_sent(served: Flower, worker: Running) -> None:
    before = set(served.tasks())
    for name, body, status in REFUSED:
        assert served.post(f"api/task/send-task/{name}", body=json.dumps(body).encode()) == status, body
    assert [line for line in acts(worker) if "refused" not in line.detail] == []
    assert set(served.tasks()) == before


def test_acts_on_workers_are_in_the_audit_log_with_actor_and_subject(worker: Running, served: Flower) -> None:
    for url in without_meaning(worker):
        assert served.post(url) == 403
    assert acts(worker) == [], "what means nothing here is not done"
    for url, word in on_workers(worker).items():
        served.post(url)
        newest = until(lambda word=word: (lines := acts(worker)) and lines[0].act == word and lines[0], word)
        assert (newest.actor, newest.subject) == ("op", worker.name)
    until(lambda: worker.process.poll() is not None, "the end of the worker")
    [grow] = audit.find(worker.database, acts=["pool grow"])
    assert grow.detail == {"by": "flower", "n": "2"}
    assert served.post("api/worker/shutdown/none") == 404
    until(lambda: acts(worker)[0].detail.get("refused") == 404, "the refusal")


def test_nothing_is_done_that_cannot_be_recorded(worker: Running, tmp_path: Path) -> None:
    with flower(worker, tmp_path, free_port(), PENSTOCK_DATABASE_URL=f"sqlite:///{tmp_path}/none/set-up.db") as served:
        knows(served, worker)
        assert served.post(f"api/worker/shutdown/{worker.name}") == 503
        assert served.post("api/task/revoke/job-1") == 503
        assert served.get("api/tasks") == 503
    assert worker.producer.enqueue(Add(a=1)).result(timeout=60) == 2


def test_acts_behind_a_prefix_are_guarded_as_well(worker: Running, tmp_path: Path) -> None:
    more = {"PENSTOCK_FLOWER_ADMINS": "[]", "FLOWER_URL_PREFIX": "monitor"}
    with flower(worker, tmp_path, free_port(), **more) as served:
        knows(served, worker, prefix="monitor/")
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

    def cookies(user: str, token: str = "abc") -> dict[str, Any]:
        value = create_signed_value("test-secret", "user", user).decode()
        return {"Cookie": f"_xsrf=abc; user={value}", "X-XSRFToken": token}

    revoke = "api/task/revoke/job-1"
    with flower(worker, tmp_path, free_port(), **oauth) as served:
        assert served.post(revoke, "") == 401
        assert served.post(revoke, "", **cookies("bob@example.com")) == 403
        assert served.post(revoke, "", **cookies("ada@elsewhere.com")) == 401
        assert served.post(revoke, "", **cookies("ada@example.com", token="abd")) == 403
        assert acts(worker) == []
        assert served.post(revoke, "", **cookies("ada@example.com"))["message"] == "Revoked 'job-1'"
    assert [(line.actor, line.subject) for line in acts(worker)] == [("ada@example.com", "job-1")]
