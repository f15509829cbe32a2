from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from support.ledgers import row_of
from typer.main import get_command

from penstock.config.errors import ConfigError
from penstock.config.logging import setup_logging
from penstock.config.settings import load_settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import VERSION_TABLE
from penstock.ledger.transitions import due
from penstock.schemas import State
from penstock.schemas.wire.codec import decode
from penstock.workers.brokers import open_consumer
from penstock.workers.cli import HOMES, app
from penstock.workers.cli.common.options import duration, moment

Run = Callable[..., Any]


def test_the_ledger_is_set_up_and_says_where_it_is(penstock: Run) -> None:
    before = penstock("jobs", "list")
    assert before.code == 1
    assert "penstock db upgrade" in before.err
    assert penstock("db", "current", "--json").json["current"] is None
    assert penstock("db", "upgrade").code == 0
    current = penstock("db", "current", "--json").json
    assert current["current"] == current["head"] is not None
    assert penstock("jobs", "list").code == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres://ada:hidden@db/shop", "write postgresql+psycopg:// in place of postgres://"),
        ("mysql://ada:hidden@db/shop", "write mysql+pymysql:// in place of mysql://"),
        ("shop.db", "is not a URL"),
        ("postgresql+psycopg://ada:hidden@db:port/shop", "the port is not a number"),
        ("sqlite:///newer.db", "is at revision '9999'"),
    ],
)
def test_an_upgrade_that_cannot_be_is_one_line(
    penstock: Run, url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)  # a Django project of other tests puts PyMySQL there
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "sqlite:///newer.db")
    assert penstock("db", "upgrade").code == 0
    with closing(Database("sqlite:///newer.db")) as database:
        change = sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        database.write(lambda connection: connection.execute(change))
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", url)
    refused = penstock("db", "upgrade")
    assert refused.code == 2
    assert says in refused.err
    assert refused.err.startswith("penstock: ")
    assert refused.err.count("\n") == 1
    assert "hidden" not in refused.err


def test_the_doctor_names_what_is_wrong(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sick = penstock("doctor", "--json")
    assert sick.code == 1
    assert {check["check"] for check in sick.json if not check["ok"]} == {"ledger"}
    penstock("db", "upgrade")
    alone = penstock("doctor", "--json")  # no dispatcher runs
    assert {check["check"] for check in alone.json if not check["ok"]} == {"dispatchers"}
    assert alone.code == 1
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "redis://:s3cret@127.0.0.1:1/0")
    monkeypatch.setenv("PENSTOCK_STORAGE_URL", "file:/proc/nowhere")
    monkeypatch.setenv("PENSTOCK_BROKER_TIMEOUT_SECONDS", "0.5")
    sick = penstock("doctor", "--json")
    assert {check["check"] for check in sick.json if not check["ok"]} == {"broker", "storage", "dispatchers"}
    assert "s3cret" not in sick.out


def test_a_job_is_enqueued_checked_and_found_in_its_queue(penstock: Run, ledger: Database) -> None:
    result = penstock("enqueue", "ledger.login", '{"user": "ada"}', "--priority", "high", "--key", "k", "--json")
    assert result.code == 0
    settings = load_settings()
    consumer = open_consumer(settings.broker_url, ["notes"], name="c", prefix=settings.prefix)
    consumer.open()
    [delivery] = consumer.fetch(10, 30)
    consumer.ack([delivery])
    consumer.close()
    read = decode(delivery.envelope)
    assert (read.id, read.priority, read.key) == (result.json["id"], "high", "k")
    assert penstock("queues", "list", "--json").code == 0


def test_a_delayed_job_comes_to_the_ledger_through_the_dispatchers_queue(penstock: Run, ledger: Database) -> None:
    job_id = penstock("enqueue", "ledger.note", "-", "--delay", "1h", stdin='{"text": "x"}').out.strip()
    waiting = {row["queue"]: row["waiting"] for row in penstock("queues", "list", "--json").json}
    assert waiting["dispatcher"] == 1
    settings = load_settings()
    consumer = open_consumer(settings.broker_url, ["dispatcher"], name="c", prefix=settings.prefix)
    consumer.open()
    [delivery] = consumer.fetch(10, 30)
    due.schedule(ledger, [delivery.envelope])
    consumer.ack([delivery])
    consumer.close()
    row = row_of(ledger, job_id)
    assert row.state == State.SCHEDULED
    assert row.due_at > datetime.now(UTC) + timedelta(minutes=59)
    numbers = {row["queue"]: row["scheduled"] for row in penstock("queues", "list", "--json").json}
    assert numbers["notes"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("no.such", "{}"), "no imported module defines kind 'no.such'"),
        (("ledger.login", '{"password": "s3cret"}'), "user: Field required"),
        (("ledger.login", "not json"), "Invalid JSON"),
        (("ledger.note", "{}", "--delay", "soon"), "not a duration"),
        (("ledger.note", "{}", "--run-at", "2030-01-01T00:00"), "no offset"),
        (("ledger.note", "{}", "--priority", "urgent"), "urgent"),
        (("ledger.note", "{}", "--queue", "no such queue"), "queue"),
    ],
)
def test_an_invalid_job_is_refused_before_it_is_sent(penstock: Run, arguments: tuple[str, ...], expected: str) -> None:
    result = penstock("enqueue", *arguments)
    assert result.code == 2
    assert expected in " ".join(result.err.replace("│", " ").split())
    assert "s3cret" not in result.err


def test_waiting_for_a_job_that_no_worker_runs_ends_with_the_timeout(penstock: Run, ledger: Database) -> None:
    result = penstock("enqueue", "ledger.note", "{}", "--wait", "--timeout", "100ms")
    assert result.code == 1
    assert "queued" in result.err


def test_the_schemas_of_kinds_are_exported(penstock: Run, workplace: Path) -> None:
    kinds = penstock("schema", "export", "--kind", "ledger.login").json["kinds"]
    assert list(kinds) == ["ledger.login"]
    assert (kinds["ledger.login"]["queue"], kinds["ledger.login"]["version"]) == ("notes", 2)
    assert kinds["ledger.login"]["sensitive"] == ["password"]
    assert penstock("schema", "export", "--output", "kinds.json").code == 0
    assert {"ledger.note", "email.send"} <= set(json.loads((workplace / "kinds.json").read_text())["kinds"])
    assert penstock("schema", "export", "--kind", "no.such").code == 2


def test_a_wrong_setting_is_reported_with_its_line(penstock: Run, workplace: Path) -> None:
    (workplace / "penstock.toml").write_text("prefix = 'a'\nno_such = 1\n")
    result = penstock("jobs", "list")
    assert result.code == 2
    assert "penstock.toml:2" in result.err


def test_a_module_that_cannot_be_imported_shows_where_and_why(penstock: Run, workplace: Path) -> None:
    (workplace / "broken_jobs.py").write_text("import json\n\n1 / 0\n")
    result = penstock("schema", "export", "--import", "broken_jobs")
    assert result.code == 2
    assert "broken_jobs.py" in result.err
    assert "line 3" in result.err
    assert result.err.splitlines()[-2:] == [
        "ZeroDivisionError: division by zero",
        "penstock: cannot import broken_jobs",
    ]
    assert "importlib" not in result.err
    assert penstock("schema", "export", "--import", "not_there").code == 2


def test_modules_in_the_working_directory_are_found(penstock: Run, workplace: Path) -> None:
    (workplace / "near_jobs.py").write_text(
        "from penstock.schemas import Job\n\nclass Near(Job, kind='near.by'):\n    x: int\n"
    )
    assert penstock("schema", "export", "--kind", "near.by", "--import", "near_jobs").code == 0


def test_ctrl_c_ends_a_command_with_130(penstock: Run, ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.ledger.queries.jobs.each", interrupt)
    result = penstock("jobs", "list")
    assert (result.code, result.out) == (130, "")


def test_a_worker_of_an_unknown_engine_is_refused(
    penstock: Run, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = penstock("worker", "--engine", "steam", "--queues", "notes")
    assert result.code == 2
    assert "steam" in result.err
    assert penstock("worker", "--queues", " , ").code == 2
    result = penstock("worker", "--max-memory", "much")
    assert (result.code, "'much' is not a size" in result.err) == (2, True)
    assert penstock("worker", "--max-jobs", "0").code == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1h", 3600), ("2d", 172800), ("1.5h", 5400), ("0", 0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "-5", "1y", "1h30", "9" * 400, "inf"])
def test_a_text_that_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration(text)


def test_moments_are_in_utc() -> None:
    assert moment("2026-03-01T09:00+01:00") == datetime(2026, 3, 1, 8, tzinfo=UTC)


def errors_of(code: str) -> str:
    """Run the code in a process of its own, which must succeed, and return what it said on standard error."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_listing_jobs_loads_no_engine(workplace: Path, ledger: Database) -> None:
    code = (
        "import sys\nfrom penstock.workers.cli import main\nsys.argv = ['penstock', 'jobs', 'list']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'celery', 'dramatiq', 'kombu', 'boto3', 'PIL', 'jinja2', 'httpx', 'redis', 'structlog'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    errors_of(code)


def test_the_version_and_a_wrong_command_load_no_command(workplace: Path) -> None:
    code = (
        "import sys\nfrom penstock.workers.cli import HOMES, main\n"
        "for words in (['--version'], ['jbos']):\n"
        "    sys.argv = ['penstock', *words]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "late = {'penstock.schemas.jobs.job', 'sqlalchemy'}\n"
        "late |= {f'penstock.workers.cli.{home}' for home in HOMES.values()}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    assert "Did you mean 'jobs'" in errors_of(code)


def test_each_command_is_defined_where_the_command_line_looks_for_it() -> None:
    root = get_command(app)
    names = root.list_commands(None)
    assert names == list(HOMES)
    assert [root.get_command(None, name).name for name in names] == names
    assert root.get_command(None, "nonsense") is None


def test_each_command_that_imports_kinds_takes_those_of_adopted_applications() -> None:
    root: Any = get_command(app)

    def options(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
        yield name, {option for parameter in command.params for option in parameter.opts}
        for each, part in getattr(command, "commands", {}).items():
            yield from options(part, f"{name} {each}")

    imports = {
        name: {"--celery", "--dramatiq", "--rq"} <= names
        for home in HOMES
        for name, names in options(root.get_command(None, home), home)
        if "--import" in names
    }
    assert {"flower", "gateway", "enqueue", "jobs show", "jobs explain", "deadletters show"} <= set(imports)
    assert [name for name, adopted in imports.items() if not adopted] == ["up"]


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_log_line_names_the_job_and_shows_no_local_variables(
    fmt: str, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("info", fmt)
    log = logging.LoggerAdapter(logging.getLogger("penstock.job.x"), {"job_id": "j-1", "attempt": 2})
    password = "s3cret"
    try:
        raise ValueError(f"{len(password)} characters are too few")
    except ValueError:
        log.exception("failed with %s", "this")
    log.debug("not shown")
    lines = capsys.readouterr().err
    assert "s3cret" not in lines
    assert "not shown" not in lines
    if fmt == "json":
        [entry] = [json.loads(line) for line in lines.splitlines()]
        assert (entry["event"], entry["job_id"], entry["attempt"]) == ("failed with this", "j-1", 2)
        assert "ValueError" in entry["exception"]
    else:
        assert "job_id=j-1" in lines
        assert "ValueError: 6 characters" in lines


def test_a_wrong_log_level_or_format_is_refused(root_logger: logging.Logger) -> None:
    with pytest.raises(ConfigError, match="LOUD"):
        setup_logging("loud")
    with pytest.raises(ConfigError, match="xml"):
        setup_logging("info", "xml")
