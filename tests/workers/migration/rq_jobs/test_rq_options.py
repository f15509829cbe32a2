"""`--rq` with what it cannot do, and processes without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.workers.engines.rq import adopt
from penstock.workers.engines.rq.connection import connect


@pytest.mark.parametrize(
    ("queues", "reason"),
    [
        (" , ", "--rq takes the names of RQ's queues, as --rq high,default"),
        ("my queue", "it has other characters than A-Z"),
        ("dispatcher", "it is the dispatcher's own"),
    ],
)
def test_names_that_our_queues_cannot_have_are_refused(queues: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        adopt(queues, Settings())


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rq", None)
    with pytest.raises(ConfigError, match=r"pip install 'penstock\[rq\]'"):
        adopt("high", Settings())


def test_redis_of_rq_is_the_broker_or_that_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RQ_REDIS_URL", raising=False)
    with connect(Settings(broker_url="redis://127.0.0.1:1/3")) as connection:
        assert connection.get_connection_kwargs()["db"] == 3
    with pytest.raises(ConfigError, match="set RQ_REDIS_URL, as for RQ's own workers"):
        adopt("high", Settings(broker_url="amqp://127.0.0.1//"))
    monkeypatch.setenv("RQ_REDIS_URL", "redis://127.0.0.1:1/4")
    with connect(Settings(broker_url="amqp://127.0.0.1//")) as connection:
        assert connection.get_connection_kwargs()["db"] == 4
    monkeypatch.setenv("RQ_REDIS_URL", "redis://127.0.0.1:port/4")
    with pytest.raises(ConfigError, match="RQ_REDIS_URL: "):
        connect(Settings())


def test_worker_without_the_option_does_not_load_it() -> None:
    code = (
        "import sys; from penstock.workers.engines import preload, command; "
        "from penstock.config.settings import Settings; "
        "[preload(engine, Settings(), []) for engine in ('celery', 'dramatiq')]; "
        "print([name for name in sys.modules if name == 'rq' or '.engines.rq' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
