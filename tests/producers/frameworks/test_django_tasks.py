"""Django's tasks, by the backport: written to the outbox with the caller's data, run as jobs, and read back."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import django_project
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils import timezone
from django_tasks import TaskResultStatus, default_task_backend, task_backends
from django_tasks.exceptions import InvalidTaskError, TaskResultDoesNotExist, TaskResultMismatch

from penstock.config.errors import InvalidJob
from penstock.producers.contrib.django import running
from penstock.producers.contrib.django.models import OutboxEntry
from penstock.producers.contrib.django.tasks import kinds
from penstock.producers.contrib.django.tasks.kinds import adopted_tasks
from penstock.producers.testing import Kit
from penstock.schemas.jobs.kind import registry
from penstock.workers.handlers.registry import handlers

BACKEND = "penstock.producers.contrib.django.tasks.PenstockBackend"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with django_project.database(f"sqlite:///{tmp_path_factory.mktemp('tasks') / 'shop.db'}") as alias:
        yield alias


@pytest.fixture
def alias(migrated: str) -> Iterator[str]:
    """The alias of a database whose outbox is empty, and that the backend uses."""
    options = {
        "database": migrated,
        "tasks": {
            "sample_tasks.flaky": {"retry": {"max_attempts": 3, "give_up_on": ["sample_tasks.Unlucky"]}},
            "sample_tasks.flaky_async": {"retry": {"max_attempts": 3}},
            "sample_tasks.add": {"aliases": ["former_tasks.add"]},
        },
    }
    OutboxEntry.objects.using(migrated).delete()
    with tasks(QUEUES=["default", "mails", "slow"], OPTIONS=options):
        yield migrated
    connections[migrated].close()


@pytest.fixture
def samples(alias: str) -> Iterator[Any]:
    """The module `sample_tasks`, whose tasks are kinds for this test only: a child process of another test would import
    it again."""
    module = importlib.import_module("sample_tasks")
    module.signals.clear()
    yield module
    for adopted in adopted_tasks():
        handlers.discard(adopted.job.kind())
        registry.discard(adopted.job.kind())
    kinds._adopted.clear()


@pytest.fixture
def kit(samples: Any, penstock: Kit) -> Kit:
    running.producer.cache_clear()
    return penstock


def run(kit: Kit, alias: str, result: Any) -> Any:
    """The result after all of its attempts."""
    kit.take_outbox(alias)
    for _ in range(4):
        kit.drain(raising=False)
        kit.travel(timedelta(hours=2))
    result.refresh()
    return result


def test_task_is_committed_with_the_block_or_not_at_all(kit: Kit, samples: Any, alias: str) -> None:
    with transaction.atomic(using=alias), CaptureQueriesContext(connections[alias]) as queries:
        kept = samples.add.enqueue(1, 2, to=3)
        transaction.set_rollback(False, using=alias)
    assert [query["sql"].split()[0] for query in queries] == ["INSERT"]
    with transaction.atomic(using=alias):
        undone = samples.add.enqueue()
        transaction.set_rollback(True, using=alias)
    assert [entry.job_id for entry in OutboxEntry.objects.using(alias).all()] == [kept.id]
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(undone.id)
    assert (kept.status, kept.args, kept.kwargs, kept.attempts) == (TaskResultStatus.READY, [1, 2], {"to": 3}, 0)
    assert default_task_backend.get_result(kept.id) == kept


def test_result_has_value_times_worker_and_signals(kit: Kit, samples: Any, alias: str) -> None:
    result = run(kit, alias, samples.add.enqueue(1, 2, to=3))
    assert (result.status, result.return_value, result.attempts) == (TaskResultStatus.SUCCESSFUL, 6, 1)
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
    assert (result.worker_ids, result.errors) == (["test"], [])
    assert samples.add.get_result(result.id).task == samples.add
    with pytest.raises(TaskResultMismatch):
        samples.fail.get_result(result.id)
    assert samples.signals == [
        ("enqueued", result.id, "READY"),
        ("started", result.id, "RUNNING"),
        ("finished", result.id, "SUCCESSFUL"),
    ]


def test_async_task_is_enqueued_run_and_read_from_coroutines(kit: Kit, samples: Any, alias: str) -> None:
    async def enqueue() -> Any:
        result = await samples.greet.using(priority=-3, queue_name="slow").aenqueue("Ada")
        await sync_to_async(connections.close_all)()
        return result

    result = asyncio.run(enqueue())
    [entry] = kit.take_outbox(alias)
    assert (entry.job.kind().name, entry.queue, entry.priority) == ("sample_tasks.greet", "slow", "low")
    kit.drain()
    fetched = asyncio.run(samples.greet.aget_result(result.id))
    assert (fetched.return_value, fetched.task.priority, fetched.task.queue_name) == ("Hello Ada", -3, "slow")
    assert [name for name, *_ in samples.signals] == ["enqueued", "started", "finished"]


def test_deferred_task_waits_for_its_time(kit: Kit, samples: Any, alias: str) -> None:
    later = timezone.make_naive(datetime.now(UTC) + timedelta(hours=1))  # as the project has USE_TZ=False
    result = samples.add.using(run_after=later).enqueue(1)
    [entry] = kit.take_outbox(alias)
    assert abs(entry.run_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert default_task_backend.get_result(result.id).task.run_after == later
    assert kit.drain() == []
    kit.travel(timedelta(hours=2))
    kit.drain()
    result.refresh()
    assert result.return_value == 1


def test_task_sees_its_context(kit: Kit, samples: Any, alias: str) -> None:
    result = run(kit, alias, samples.look.enqueue())
    assert result.return_value == {"id": result.id, "attempt": 1, "status": "RUNNING", "errors": 0}


def test_failed_task_is_not_tried_again_unless_the_settings_say_so(kit: Kit, samples: Any, alias: str) -> None:
    result = run(kit, alias, samples.fail.enqueue())
    assert (result.status, result.attempts, result.is_finished) == (TaskResultStatus.FAILED, 1, True)
    [error] = result.errors
    assert error.exception_class is samples.Unlucky
    assert error.traceback.endswith("sample_tasks.Unlucky: one line\nand another: with a colon\n")
    assert samples.signals[-1] == ("finished", result.id, "FAILED")


@pytest.mark.parametrize(("name", "value"), [("flaky", 3), ("flaky_async", ["builtins.ConnectionError"])])
def test_retried_task_keeps_its_errors_and_ends_once(kit: Kit, samples: Any, alias: str, name: str, value: Any) -> None:
    result = run(kit, alias, getattr(samples, name).enqueue())
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, value)
    assert [error.exception_class for error in result.errors] == [ConnectionError] * (result.attempts - 1)
    assert [name for name, *_ in samples.signals].count("finished") == 1
    assert result.started_at < result.last_attempted_at


@pytest.mark.parametrize(("name", "error", "words"), [("leave", SystemExit, "enough"), ("opaque", TypeError, "Unsupp")])
def test_task_that_exits_or_returns_no_json_has_failed(
    kit: Kit, samples: Any, alias: str, name: str, error: type[BaseException], words: str
) -> None:
    result = run(kit, alias, getattr(samples, name).enqueue())
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is error
    assert words in result.errors[0].traceback


def test_task_that_has_moved_is_run_under_its_former_path(kit: Kit, samples: Any, alias: str) -> None:
    result = samples.add.enqueue(1)
    entry = OutboxEntry.objects.using(alias).get()
    entry.kind, entry.headers = "former_tasks.add", entry.headers.replace("sample_tasks.add", "former_tasks.add")
    entry.save(using=alias)
    assert samples.add.get_result(result.id).task == samples.add
    assert run(kit, alias, result).return_value == 1


def test_cancelled_task_has_failed_and_says_why(kit: Kit, samples: Any, alias: str) -> None:
    result = samples.add.enqueue(1)
    kit.take_outbox(alias)
    running.producer().handle(result.id).cancel()
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 0)
    assert "cancelled" in result.errors[0].traceback
    assert issubclass(result.errors[0].exception_class, Exception)


def test_arguments_that_json_cannot_hold_are_refused(kit: Kit, samples: Any, alias: str) -> None:
    with pytest.raises(TypeError, match="Unsupported type"):
        samples.add.enqueue(object())
    with pytest.raises(InvalidJob, match=r"sample_tasks\.add.*nan"):
        samples.add.enqueue(float("nan"))
    assert kit.take_outbox(alias) == []


def test_unknown_ids_have_no_result(kit: Kit, alias: str) -> None:
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result("123")


def tasks(**settings: Any) -> Any:
    return override_settings(TASKS={"default": {"BACKEND": BACKEND, **settings}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"OPTIONS": {"retires": {}}}, "TASKS['default']['OPTIONS'] has an unknown option 'retires'; did you mean 're"),
        ({"OPTIONS": {"retry": {"attempts": 3}}}, "TASKS['default']['OPTIONS']['retry']: "),
        ({"OPTIONS": {"retry": {"give_up_on": "no.Such"}}}, "['retry']['give_up_on']: No module named 'no'"),
        ({"OPTIONS": {"tasks": {"a.b": {"database": "x"}}}}, "['tasks']['a.b'] has an unknown option 'database'"),
        ({"QUEUES": ["dispatcher"]}, "TASKS['default']['QUEUES']: queue 'dispatcher' is the dispatcher's own"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with tasks(**settings), pytest.raises(ImproperlyConfigured) as error:
        task_backends["default"]
    assert message in str(error.value)


def test_queues_that_the_settings_do_not_list_are_refused(samples: Any) -> None:
    with tasks(QUEUES=["default"]), pytest.raises(InvalidTaskError, match="Queue 'other' is not valid"):
        samples.add.using(queue_name="other")


def test_check_names_an_app_and_tasks_that_are_missing() -> None:
    with tasks(), override_settings(INSTALLED_APPS=["django_tasks"]):
        [error] = default_task_backend.check()
    assert (error.id, "manage.py migrate penstock" in error.hint) == ("penstock.E001", True)
    with tasks(OPTIONS={"tasks": {"sample_tasks.add": {}, "sample_tasks.ad": {}, "nowhere.add": {}}}):
        errors = default_task_backend.check()
    assert [(error.id, error.msg.split("names ")[1]) for error in errors] == [
        ("penstock.E002", "'sample_tasks.ad', which is not a task"),
        ("penstock.E002", "'nowhere.add', which is not a task"),
    ]
    with tasks():
        assert list(default_task_backend.check()) == []


def test_backport_that_is_missing_is_named(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["django_tasks"] = None
from django.conf import settings
settings.configure()
import penstock.producers.contrib.django.tasks
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "install django-tasks, and add 'django_tasks' to INSTALLED_APPS" in done.stderr
