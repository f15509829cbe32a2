"""Settings that a worker refuses to start with. It checks them before it connects to anything."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boot_jobs
import pytest

from penstock.config.errors import ConfigError, KindError
from penstock.config.settings import Settings
from penstock.schemas import Job
from penstock.schemas.jobs.kind import registry
from penstock.workers import handles
from penstock.workers.engines.boot_checks import check_settings, warn_unhandled
from penstock.workers.engines.worker import Worker
from penstock.workers.handlers.discovery import discover, warn_idle
from penstock.workers.handlers.registry import Handlers, handlers

APPS = Path(__file__).parent / "apps"
NOWHERE = "amqp://guest:guest@127.0.0.1:9//"


def with_settings(**settings: Any) -> Settings:
    return Settings(**{"broker_url": NOWHERE, "database_url": "sqlite://", **settings})


def boot(*queues: str, **settings: Any) -> None:
    """A worker that is refused. One that is not would hold sockets."""
    Worker(with_settings(**settings), engine="celery", queues=queues)
    raise AssertionError("it was not refused")


def allowed(*queues: str, **settings: Any) -> None:
    handlers.check()
    check_settings(handlers, with_settings(**settings), queues)


def line_of(function: str) -> str:
    lines = (APPS / "boot_jobs.py").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.startswith(f"async def {function}("))
    return f"{APPS / 'boot_jobs.py'}:{number - 1}"  # a function begins with its decorator


def test_a_timeout_that_outlasts_rabbitmqs_patience_is_refused() -> None:
    with pytest.raises(KindError) as refused:
        boot("boot-long", "boot-short")
    message = str(refused.value)
    assert message.startswith(f"{line_of('long')}: kind 'boot.long' has timeout=3600")
    assert "rabbitmq_consumer_timeout_seconds" in message
    assert "boot.short" not in message
    allowed("boot-long", rabbitmq_consumer_timeout_seconds=3601)
    with pytest.raises(KindError):
        boot("boot-long", rabbitmq_consumer_timeout_seconds=3600)


def test_a_long_timeout_is_allowed_on_another_queue_at_most_once_or_on_redis() -> None:
    allowed("boot-short")
    allowed("boot-most")
    allowed("boot-long", broker_url="redis://127.0.0.1:9/0")


def test_kinds_without_a_timeout_are_named_in_a_warning_on_rabbitmq(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "penstock.worker"):
        allowed("boot-endless", "boot-short", broker_url="redis://127.0.0.1:9/0")
        allowed("boot-short", "boot-most")
        assert caplog.text == ""
        allowed("boot-endless", "boot-short")
    [record] = caplog.records
    assert "no timeout is declared for boot.endless;" in record.getMessage()


@pytest.mark.parametrize("database_url", ["", "none"])
def test_kinds_that_need_the_ledger_are_refused_without_one(database_url: str) -> None:
    with pytest.raises(KindError) as refused:
        boot("boot-paid", "boot-single", "boot-loose", database_url=database_url)
    lines = str(refused.value).splitlines()
    assert [line.split(" needs ")[0] for line in lines] == [
        f"{line_of('paid')}: kind 'boot.paid' with delivery='once'",
        f"{line_of('single')}: kind 'boot.single' with unique='reject'",
    ]
    assert all("PENSTOCK_DATABASE_URL" in line for line in lines)
    with pytest.raises(ConfigError, match="PENSTOCK_DATABASE_URL"):
        boot("boot-loose", database_url=database_url)


@pytest.fixture
def forgotten() -> Iterator[None]:
    kind = boot_jobs.Loose.kind()
    registry.discard(kind)
    yield
    registry.add(kind)


def test_a_handler_of_an_unregistered_kind_is_refused(forgotten: None) -> None:
    with pytest.raises(KindError) as refused:
        boot("boot-short")
    assert str(refused.value).startswith(f"{line_of('loose')}: the handler of 'boot.loose'")


def test_a_handler_of_something_that_is_not_a_kind_is_refused_at_its_import() -> None:
    class Base(Job): ...

    class Odd: ...

    for job in (Base, Odd):
        with pytest.raises(KindError, match=rf"test_boot\.py:\d+: handler .*nothing of {job.__qualname__}, .* no kind"):

            @handles(job)  # type: ignore[arg-type]
            def nothing(job: Any) -> None: ...


def test_the_error_for_two_handlers_of_a_kind_names_both() -> None:
    registry = Handlers()
    first, second = handlers.find(boot_jobs.Short.kind()), handlers.find(boot_jobs.Long.kind())
    assert first is not None
    assert second is not None
    registry.add(first)
    with pytest.raises(KindError) as refused:
        registry.add(type(first)(first.kind, second.function, "async", None, {}))
    assert all(where in str(refused.value) for where in (line_of("short"), line_of("long"), "boot.short"))


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_the_command_says_it_in_a_line_and_ends(engine: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(APPS),
        "PENSTOCK_BROKER_URL": NOWHERE,
        "PENSTOCK_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
    }
    command = [Path(sys.executable).parent / "penstock", "worker", "--engine", engine]
    words = ["--queues", "boot-long", "--import", "boot_jobs"]
    done = subprocess.run([*command, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "boot.long" in line]
    assert line.startswith(f"penstock: {line_of('long')}: kind 'boot.long' has timeout=3600")


def test_a_queue_without_a_handler_is_named_in_a_warning_with_the_kinds_that_lack_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Declared(Job, kind="boot.declared", queue="boot-lonely"): ...

    try:
        warn_unhandled(handlers, ["boot-short", "boot-lonely", "boot-nothing"], {"boot.elsewhere": "boot-lonely"})
    finally:
        registry.discard(Declared.kind())
    lonely, nothing = (record.getMessage() for record in caplog.records)
    assert "no module imported here has a handler for queue boot-lonely" in lonely
    assert f"--import with the module that handles boot.declared, boot.elsewhere (declared in {__name__})" in lonely
    assert "for queue boot-nothing" in nothing


def test_an_import_that_adds_no_handler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    handled = "from penstock.schemas import Job\nfrom penstock.workers import handles\n"
    handled += "class Seen(Job, kind='boot.seen', queue='boot-seen'): ...\n@handles(Seen)\ndef see(job: Seen): ...\n"
    (tmp_path / "boot_with_handler.py").write_text(handled)
    (tmp_path / "boot_without_handler.py").write_text("")
    try:
        assert discover(["boot_with_handler", "boot_without_handler"]) == ["boot_without_handler"]
        assert "--import boot_without_handler adds no handler" in warn_idle("boot_without_handler")
    finally:
        seen = registry["boot.seen"]
        handlers.discard(seen)
        registry.discard(seen)
