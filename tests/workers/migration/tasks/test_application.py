"""Applications that cannot be adopted, or not in all they say: each is named at the start."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import signals
from celery_example import forget_adopted
from kombu.serialization import dumps
from support.ledgers import upgraded
from typer.testing import CliRunner

from penstock.config.errors import ConfigError, KindError, UndecodableMessage
from penstock.config.settings import Settings
from penstock.schemas import Job, registry
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.wire.codec import Envelope, decode
from penstock.workers.cli import app as commands
from penstock.workers.engines.boot_checks import check_settings
from penstock.workers.engines.celery.adopted.application import load_application
from penstock.workers.engines.celery.adopted.doubts import doubts_about, pool_of
from penstock.workers.engines.celery.adopted.request import ReceivedObserver, request_of
from penstock.workers.engines.celery.adopted.tasks import adopt_tasks, limits_of, written_limits_of
from penstock.workers.handlers.discovery import ImportFailed
from penstock.workers.handlers.registry import handlers

SHOWN = """
import celery

app = celery.Celery("shown", set_as_current=False)

@app.task(name="shown.add", shared=False)
def add(a, b):
    return a + b
"""
SETTINGS = Settings(broker_url="redis://localhost:6379/3")


@pytest.fixture
def app(adopted_for_a_test: None) -> celery.Celery:
    """An application with one task."""
    app = celery.Celery("small", broker="redis://127.0.0.1/3", set_as_current=False, fixups=set())

    @app.task(name="small.add", shared=False)
    def add(a: int, b: int) -> int:
        return a + b

    return app


def stock(body: bytes, **properties: Any) -> Envelope:
    headers = {"task": "small.add", "id": "t1", "retries": 1, "properties": properties}
    return Envelope("celery", "normal", headers, body)


def test_an_application_that_does_not_import_is_named_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_shop.py").write_text("app = 1 / 0\n")
    (tmp_path / "no_shop.py").write_text("app = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportFailed, match="cannot import the Celery application broken_shop:app") as failure:
        load_application("broken_shop:app")
    assert "ZeroDivisionError" in failure.value.trace
    with pytest.raises(ConfigError, match="7, not a Celery application"):
        load_application("no_shop:app")
    result = CliRunner().invoke(commands, ["kinds", "list", "--celery", "broken_shop:app"])
    assert (result.exit_code, "ZeroDivisionError" in result.stderr) == (2, True)


def test_declared_tasks_are_shown_with_their_arguments(
    app: celery.Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower and commands hide the values of kinds that they do not know: these take --celery, too."""
    (tmp_path / "shown_shop.py").write_text(SHOWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", upgraded(f"sqlite:///{tmp_path}/ledger.db"))
    payload = {"args": [[1, 2]], "kwargs": {}, "request": {}}
    assert registry.redact("shown.add", payload)["args"] == "***"
    result = CliRunner().invoke(commands, ["kinds", "list", "--celery", "shown_shop:app", "--json"])
    assert (result.exit_code, "shown.add" in result.stdout) == (0, True)
    assert registry.redact("shown.add", payload) == payload


def test_a_task_and_a_job_of_one_kind_are_both_named(app: celery.Celery) -> None:
    job = type(Job)("Add", (Job,), {}, kind="small.add")
    try:
        with pytest.raises(KindError, match=r"small\.add.*already taken by"):
            adopt_tasks(app, SETTINGS)
    finally:
        registry.discard(job.kind())


def test_settings_that_have_no_effect_are_named(app: celery.Celery) -> None:
    assert list(doubts_about(app, SETTINGS)) == []
    assert pool_of(app) == "processes"
    app.conf.update(worker_pool="gevent", task_always_eager=True)
    app.tasks["small.add"].rate_limit = "10/m"
    other = Settings(broker_url="redis://127.0.0.1:6379/4")
    lines = "\n".join(doubts_about(app, other))
    for name in ("worker_pool = 'gevent'", "task_always_eager", "small.add", "6379/4"):
        assert name in lines
    assert pool_of(app) == "threads"


def test_a_time_limit_that_outlasts_rabbitmqs_patience_is_named_and_cut(app: celery.Celery) -> None:
    task = app.tasks["small.add"]
    task.time_limit, task.soft_time_limit = 3600, 3000
    on_rabbitmq = Settings(broker_url="amqp://127.0.0.1//")
    app.conf.broker_url = on_rabbitmq.broker_url
    assert "time_limit of small.add: RabbitMQ takes back" in "\n".join(doubts_about(app, on_rabbitmq))
    assert list(doubts_about(app, on_rabbitmq.model_copy(update={"rabbitmq_consumer_timeout_seconds": 3601}))) == []
    adopt_tasks(app, on_rabbitmq)
    check_settings(handlers, on_rabbitmq.model_copy(update={"database_url": "sqlite://"}), ["celery"])
    kind = registry["small.add"]
    assert (kind.timeout, kind.soft_timeout) == (timedelta(seconds=1710), timedelta(seconds=1624.5))
    forget_adopted()
    adopt_tasks(app, SETTINGS)
    assert registry["small.add"].timeout == timedelta(hours=1)


def test_receivers_of_task_received_get_celerys_own_request(app: celery.Celery) -> None:
    adopt_tasks(app, SETTINGS)
    headers = {"task": "small.add", "id": "t1", "stamped_headers": ["origin"], "stamps": {"origin": ["web"]}}
    body = b'[[1], {"b": 2}, {"errbacks": [{"task": "x"}]}]'
    requests = []

    def receive(request: Any, **_: Any) -> None:
        requests.append(request)

    signals.task_received.connect(receive)
    try:
        ReceivedObserver(app, "w1").received(decode(Envelope("celery", "normal", headers, body)))
    finally:
        signals.task_received.disconnect(receive)
    [request] = requests
    assert (request.id, request.name, request.args, request.kwargs) == ("t1", "small.add", [1], {"b": 2})
    assert (request.stamps, request.errbacks) == ({"origin": ["web"]}, [{"task": "x"}])
    assert request.info()["delivery_info"]["priority"] == 0


@pytest.mark.parametrize(
    ("text", "text_of_limit", "written"),
    [
        ("10/s", "36000 per 3600 s", "10 per 1 s"),
        ("100/m", "6000 per 3600 s", "100 per 60 s"),
        (2.5, "9000 per 3600 s", "150 per 60 s"),
        ("0.5/h", "1 per 7200 s", "1 per 7200 s"),
        (None, "", ""),
        ("often", "", ""),
    ],
)
def test_a_rate_limit_is_a_limit_of_the_kind(app: celery.Celery, text: Any, text_of_limit: str, written: str) -> None:
    task = app.tasks["small.add"]
    task.rate_limit = text
    assert " ".join(map(str, limits_of(app, task, SETTINGS))) == text_of_limit
    assert " ".join(map(str, written_limits_of(app, task))) == written
    [doubt] = list(doubts_about(app, SETTINGS)) or [""]
    assert ("for all workers together" in doubt, "is not a rate" in doubt) == (bool(written), text == "often")
    # RabbitMQ keeps no limits: the application starts all the same, and what has no effect is named.
    rabbitmq = Settings(broker_url="amqp://localhost//")
    assert limits_of(app, task, rabbitmq) == ()
    assert ("set PENSTOCK_LIMITS_URL" in "".join(doubts_about(app, rabbitmq))) == bool(written)


def test_arguments_are_json_and_other_content_only_what_the_application_accepts(app: celery.Celery) -> None:
    adopt_tasks(app, SETTINGS)
    message = decode(stock(b'[[1], {"b": 2}, {"callbacks": [{"task": "x"}], "chord": null}]', reply_to="me"))
    assert isinstance(message.job, AdoptedJob)
    assert (message.job.args, message.job.kwargs, message.embed) == ([1], {"b": 2}, None)
    assert message.job.request["reply_to"] == "me"
    assert message.job.request["callbacks"] == [{"task": "x"}]
    args, kwargs, request = request_of(app, "small.add", message.job, "t1", "w1")
    assert (args, kwargs, request["retries"], request["id"]) == ([1], {"b": 2}, 1, "t1")

    content_type, encoding, body = dumps(([{1, 2}], {}, {}), "pickle")
    pickled = stock(body, content_type=content_type, content_encoding=encoding)
    with pytest.raises(UndecodableMessage, match=r"python-serialize.*accept_content"):
        decode(pickled)
    app.conf.accept_content = ["json", "pickle"]
    forget_adopted()
    adopt_tasks(app, SETTINGS)
    job = decode(pickled).job
    assert request_of(app, "small.add", job, "t1", "w1")[0] == [{1, 2}]
