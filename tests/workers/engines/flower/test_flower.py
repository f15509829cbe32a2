"""Flower over workers of both engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_jobs import Add, Break
from running import Running
from served import flower
from support.polling import until

from penstock.config.errors import ConfigError
from penstock.workers.engines.celery.flower.server import run_flower
from penstock.workers.local.up.redis_server import free_port


def test_flower_shows_workers_of_both_engines_as_they_come_and_jobs_of_the_ledger(
    start_worker: Callable[..., Running], tmp_path: Path
) -> None:
    workers = [start_worker("celery"), start_worker("dramatiq")]
    names = {worker.name for worker in workers}
    port = free_port()
    (tmp_path / "var" / "flower").mkdir(parents=True)
    (tmp_path / "var" / "flower" / "history.db").write_text("of an older version")
    with flower(workers[0], tmp_path, port, imports=["engine_jobs"]) as served:
        assert not (tmp_path / "var" / "flower").exists(), "no history is kept"
        assert served.get("api/workers", login="op:wrong") == 401
        until(lambda: names <= {name for name, on in served.get("api/workers?status=1").items() if on}, "both online")
        inspected = until(
            lambda: names <= (answer := served.get("api/workers")).keys() and answer, "both, without a look"
        )
        assert "engines.add" in inspected[workers[1].name]["registered"]

        added, broken = workers[0].producer.enqueue(Add(a=41)), workers[0].producer.enqueue(Break())
        until(lambda: served.tasks().get(added.id, {}).get("state") == "SUCCESS", "the success")
        until(lambda: served.tasks().get(broken.id, {}).get("state") == "FAILURE", "the failure")
        listed, details = served.tasks()[added.id], served.get(f"api/task/info/{added.id}")
        assert listed["name"] == details["name"] == "engines.add"
        assert listed["kwargs"] is None, "lists have no fields"
        assert details["kwargs"] == "{'a': 41, 'b': 1, 'card': '***'}"
        assert details["result"] == "42"
        assert served.get(f"api/task/result/{added.id}") == {"task-id": added.id, "state": "SUCCESS", "result": 42}
        assert details["retries"] == 0
        assert details["runtime"] is not None
        assert details["worker"] in names
        assert served.get("api/queues/length") == {
            "active_queues": [{"name": name, "messages": 0, "messages_ready": 0} for name in ("dispatcher", "engines")]
        }
        failed = served.get(f"api/task/info/{broken.id}")
        assert "it broke" in failed["exception"]
        assert "Traceback" in failed["traceback"]
        assert served.get("api/task/info/none") == 404
        assert set(served.get("api/tasks?state=FAILURE&taskname=engines.break")) <= {broken.id}
        assert served.get("api/tasks?state=NONE") == 400
        assert served.get("api/tasks?limit=1").keys() <= {added.id, broken.id}
        assert "engines.add" in served.get("api/task/types")["task-types"]
        columns = "draw=1&start=0&length=10&order[0][column]=0&columns[0][data]=name"
        rows = served.post(f"tasks/datatable?{columns}&search[value]={added.id}")["data"]
        assert [row["uuid"] for row in rows] == [added.id]

    with flower(workers[0], tmp_path, port, command=True) as served:
        assert {added.id, broken.id} <= served.tasks().keys(), "the ledger remembers"
        hidden = served.get(f"api/task/info/{added.id}")
        assert (hidden["kwargs"], hidden["result"]) == ("{'a': '***', 'b': '***', 'card': '***'}", '"***"')


@pytest.mark.parametrize("prefix", ["a b", "(.*)", "tools//flower", "https://x", '"'])
def test_a_prefix_that_is_not_a_path_is_refused(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        run_flower(basic_auth="op:secret", url_prefix=prefix)
    monkeypatch.setenv("FLOWER_URL_PREFIX", prefix)
    with pytest.raises(ConfigError, match="prefix"):
        run_flower(basic_auth="op:secret")


def test_a_login_of_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="user:password"):
        run_flower(basic_auth="no-password")
