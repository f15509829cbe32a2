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
from penstock.workers.engines.celery.flower_server import run_flower
from penstock.workers.local.up.redis_server import free_port


def test_flower_shows_workers_and_jobs_of_both_engines_and_remembers_them(
    start_worker: Callable[..., Running], tmp_path: Path
) -> None:
    workers = [start_worker("celery"), start_worker("dramatiq")]
    names = {worker.name for worker in workers}
    port = free_port()
    with flower(workers[0], tmp_path, port) as served:
        assert served.get("api/workers", login="op:wrong") == 401
        until(lambda: names <= {name for name, on in served.get("api/workers?status=1").items() if on}, "both online")
        inspected = until(
            lambda: (answer := served.get("api/workers?refresh=1")) and names <= answer.keys() and answer,
            "the inspection",
        )
        assert "engines.add" in inspected[workers[1].name]["registered"]

        added, broken = workers[0].producer.enqueue(Add(a=41)), workers[0].producer.enqueue(Break())
        until(lambda: served.tasks().get(added.id, {}).get("state") == "SUCCESS", "the success")
        until(lambda: served.tasks().get(broken.id, {}).get("state") == "FAILURE", "the failure")
        output = served.tasks()[added.id]
        assert output["name"] == "engines.add"
        assert output["kwargs"] == "{'a': 41, 'b': 1, 'card': '***'}"
        assert output["result"] == "42"
        assert output["retries"] == 0
        assert output["runtime"] is not None
        assert output["worker"] in names
        assert served.get("api/queues/length") == {
            "active_queues": [{"name": name, "messages": 0, "messages_ready": 0} for name in ("dispatcher", "engines")]
        }
        assert "it broke" in served.tasks()[broken.id]["exception"]

    with flower(workers[0], tmp_path, port) as served:
        assert {added.id, broken.id} <= served.tasks().keys(), "it remembers after a restart"


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
