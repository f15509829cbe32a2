"""`penstock adopt`: a module of typed jobs, written from the tasks of an application."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery_example import EXAMPLE, AdoptedShop
from support.polling import WAIT_SECONDS, until
from support.servers.forked import importer

from penstock.schemas import registry
from penstock.schemas.jobs.kind import Kind
from penstock.workers.handlers.registry import handlers

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent


def adopt(folder: Path, *options: str) -> tuple[int, str]:
    """Run `penstock adopt`. Returns the exit code and what it wrote."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(EXAMPLE), str(HERE)])}
    with (folder / "output").open("wb") as log:
        process = importer("penstock.workers.cli", "penstock.workers.engines.celery.worker").start(
            "penstock.__main__:main", "penstock", "adopt", *options, environment=environment, folder=folder, log=log
        )
    return process.wait(WAIT_SECONDS), (folder / "output").read_text()


@pytest.fixture
def jobs(adopted: AdoptedShop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the example's tasks, written and imported. Its task that retries itself does so at once."""
    folder = adopted.stack.folder
    monkeypatch.setenv("PENSTOCK_BROKER_URL", adopted.stack.broker_url)  # RabbitMQ lets no task run as long as it may
    assert adopt(folder, "--app", "shop:app", "--output", "typed_shop.py")[0] == 0
    file = folder / "typed_shop.py"
    file.write_text(file.read_text().replace("first_delay=timedelta(seconds=180)", "first_delay=timedelta(0)"))
    monkeypatch.syspath_prepend(str(folder))
    # Other tests have shops, too, with kinds of the same names.
    others = [(kind, handlers.find(kind)) for kind in registry if kind.name.startswith("shop.")]
    forget(kind for kind, _ in others)
    try:
        yield importlib.import_module("typed_shop")
    finally:
        sys.modules.pop("typed_shop", None)
        forget(kind for kind in registry if kind.job.__module__ == "typed_shop")
        for kind, handler in others:
            registry.add(kind)
            if handler is not None:
                handlers.add(handler)


def forget(kinds: Iterable[Kind]) -> None:
    for kind in list(kinds):
        registry.discard(kind)
        handlers.discard(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "engine", "pool"),
    [
        ("redis", "celery", "threads"),
        pytest.param("rabbitmq", "dramatiq", "processes", marks=pytest.mark.rabbitmq),
    ],
    indirect=["broker"],
)
def test_written_jobs_run_the_tasks_in_place(adopted: AdoptedShop, jobs: Any, engine: str, pool: str) -> None:
    stack = adopted.stack
    stack.engine = engine
    options = ["--engine", engine, "--queues", adopted.queue, "--pool", pool, "--concurrency", "2"]
    path = os.pathsep.join([str(EXAMPLE), str(stack.folder)])
    stack.run(["worker", *options, "--import", "typed_shop"], PYTHONPATH=path)
    stack.run(["dispatcher", "--import", "typed_shop"], PYTHONPATH=path)
    assert stack.producer.enqueue(jobs.Price(cents=5, copies=2)).result(WAIT_SECONDS) == 10
    retried = stack.producer.enqueue(jobs.Charge(failures=2))
    assert retried.result(WAIT_SECONDS) == 2
    assert stack.row(retried.id).attempt == 3
    stack.producer.enqueue(jobs.Send(order=7))
    until(lambda: "sent 7" in adopted.lines())
    failed = stack.producer.enqueue(jobs.Refuse())
    assert failed.wait(WAIT_SECONDS).state == "dead"
    # What old code sends is read by the same kinds.
    sent_id = adopted.shop.price.delay(5, copies=3).id
    assert stack.producer.handle(sent_id).result(WAIT_SECONDS) == 15
    assert "already registered" not in stack.logs()


@pytest.mark.slow
def test_what_no_type_can_say_is_any_with_the_reason(tmp_path: Path) -> None:
    code, output = adopt(tmp_path, "--app", "odd_shop", "--output", "odd_jobs.py")
    assert code == 0
    assert "left out: no kind has this name: kind 'no kind has this name' must be letters" in output
    text = (tmp_path / "odd_jobs.py").read_text()
    for words in (
        'class MailSend(\n    Job,\n    kind="odd.mail.send",\n    queue="mails",',
        "timeout=30,\n    soft_timeout=20,\n    expires_in=60,",
        "Refused: RetryPolicy(\n                max_attempts=5,\n                first_delay=timedelta(seconds=2),",
        "give_up_on=(BrokenPipeError,),",
        "to: str\n    color: Color = Color.RED",
        'copy_: bool = Field(default=False, alias="copy")',
        "# cost: None is the default of the task: Decimal('1.5') is not a constant\n    cost: Decimal | None = None",
        '**_set_fields(job, "cost")',
        "class OtherSend(",
        "retry=RetryPolicy(\n        max_attempts=2147483647,\n        first_delay=timedelta(seconds=180),\n",
        'a: Any\n    b: int = 1\n    args: list[Any] = Field(default_factory=list)\n    note: str = "a\'b\\""\n',
        ".run(job.a, job.b, *job.args, note=job.note, **job.kwargs)",
        "# call: collections.abc.Callable[[int], int] is not the type of a field\n    call: Any",
        "# ghost: Ghost cannot be read: NameError: name 'Ghost' is not defined\n    ghost: Any",
        "date: date_ | None = None\n    count: int | None = None",
        "# wrong: its default 'seven' is not what its annotation says\n    wrong: Any",
        "# self.retry raises its error;",
        "task.push_request(id=ctx.job_id, retries=ctx.attempt - 1)",
        'class Print(Job, kind="2nd:print"',
        "def print_(job: Print) -> None:",
        "# Left out: no kind has this name:",
    ):
        assert words in text, f"{words}\n\n{text}"
    assert '"""Send a' not in text  # its quotes would need an escape
    for command in (["check", "--select", "E,F,W,I,UP,B,C4,SIM,RUF,PIE"], ["format", "--check"]):
        for width in ("88", "120"):
            ruff = [BIN / "ruff", *command, "--isolated", "--line-length", width, "odd_jobs.py"]
            (tmp_path / "odd_shop.py").write_text("")  # as in its own project, where it is not another's package
            done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "odd_shop.py").unlink()
    # Strict, by pyproject.toml, with its options alone: so it reads the cache of `make check`. The shop has no types.
    mypy = [BIN / "mypy", tmp_path / "odd_jobs.py"]
    environment = os.environ | {"MYPYPATH": str(HERE)}
    done = subprocess.run(mypy, cwd=HERE.parents[3], env=environment, capture_output=True, text=True)
    assert "(checked 1 source file)" in done.stdout, done.stdout + done.stderr
    assert "odd_jobs.py" not in done.stdout, done.stdout
    use = (
        "import odd_jobs as j; from penstock.workers.handlers.registry import handlers\n"
        "call = lambda job: handlers.find(job.kind()).function(job)\n"
        "assert call(j.MailSend(to='ada')) == 'ada red False 1.5'\n"
        "assert call(j.MailSend(to='ada', copy=True, cost='2')) == 'ada red True 2'\n"
        "call(j.OtherSend(a=1, args=[3], kwargs={'c': 4}))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(HERE)])
    command = [sys.executable, "-W", "error", "-c", use]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 1 (3,) a'b\" {'c': 4}\n"), done.stderr


def test_bad_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken_shop.py").write_text("app = 1 / 0\n")
    (tmp_path / "empty_shop.py").write_text("import celery\napp = celery.Celery(set_as_current=False)\n")
    (tmp_path / "mine.py").write_text("# edited\n")
    for options, message in (
        ((), "give --app, a Celery application, or --dramatiq, a module of actors"),
        (("--app", "a:app", "--dramatiq", "b"), "give --app"),
        (("--app", "broken_shop:app"), "ZeroDivisionError"),
        (("--app", "empty_shop:app"), "empty_shop:app has no tasks"),
        (("--app", "odd_shop:app", "--queues", "mails,images"), "has queue images; its queues: celery, mails"),
        (("--app", "odd_shop:app", "--output", "mine.py"), "mine.py: it exists; name another file, or give --force"),
        (("--app", "odd_shop:app", "--output", "no/folder.py"), "--output no/folder.py: No such file or directory"),
    ):
        code, output = adopt(tmp_path, *options)
        assert (code, message in " ".join(output.replace("│", " ").split())) == (2, True), output
    assert (tmp_path / "mine.py").read_text() == "# edited\n"
    code, output = adopt(tmp_path, "--app", "odd_shop:app", "--queues", "mails", "--output", "mine.py", "--force")
    assert code == 0, output
    text = (tmp_path / "mine.py").read_text()
    assert "class Send(" in text
    assert "OtherSend" not in text
