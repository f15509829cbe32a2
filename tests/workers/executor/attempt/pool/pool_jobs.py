"""Jobs of plain handlers for the tests of the pool. Its processes import this module again."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from penstock.config.settings import Settings
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, Discard, Retry, Snooze, SoftTimeLimitExceeded, handles, provides
from penstock.workers.handlers.registry import handlers

SLEEP = 3600
_variable: ContextVar[str] = ContextVar("variable", default="unset")
_contexts: list[Context] = []
_setups: list[Any] = []


def set_up(*arguments: Any) -> None:
    """Called first in each process, with `call_first`."""
    _setups.append(arguments)


class Model:
    """A resource that takes long to load, and notes when it is opened and closed."""

    def __init__(self) -> None:
        self.pid, self.used = os.getpid(), 0


@provides
def load_model(settings: Settings) -> Iterator[Model]:
    logging.getLogger("pool.model").info("model opened in %d", os.getpid())
    yield Model()
    logging.getLogger("pool.model").info("model closed in %d", os.getpid())


class Plain(Job, kind="pool.plain", queue="ex", retry=RetryPolicy(max_attempts=2, give_up_on=LookupError)):
    """Calls a function of `CASES` in the worker's pool."""

    case: str
    file: str = ""


class Limited(Job, kind="pool.limited", queue="ex", soft_timeout=0.3, timeout=1.5):
    case: str
    file: str = ""


class Foreign(Job, kind="pool.foreign", queue="ex", soft_timeout=0.3):
    """Its handler is another framework's, which has an error of its own."""


class Chosen(Job, kind="pool.chosen", queue="ex"):
    """In the pool, whatever the worker's is."""


class InThread(Job, kind="pool.thread", queue="ex"):
    """In a thread, whatever the worker's pool is."""


class OnLoop(Job, kind="pool.loop", queue="ex"):
    pass


@handles(Plain)
def plain(job: Plain, ctx: Context, model: Model) -> Any:
    model.used += 1
    return CASES[job.case](ctx, model, Path(job.file))


@handles(Limited)
def limited(job: Limited, ctx: Context, model: Model) -> Any:
    return CASES[job.case](ctx, model, Path(job.file))


@handles(Chosen, pool="processes")
def chosen(job: Chosen) -> int:
    return os.getpid()


@handles(InThread, pool="threads")
def in_thread(job: InThread) -> int:
    return os.getpid()


@handles(OnLoop)
async def on_loop(job: OnLoop) -> int:
    return os.getpid()


class ForeignLimit(Exception):
    pass


@handles(Foreign)
def foreign(job: Foreign) -> str | None:
    try:
        time.sleep(SLEEP)
    except ForeignLimit as error:
        return str(error).rpartition(" has ")[2]
    return None


handlers.add(dataclasses.replace(handlers.find(Foreign.kind()), soft_error=ForeignLimit))  # type: ignore[type-var]


def _say(file: Path, *words: object) -> None:
    part = file.with_suffix(".part")
    part.write_text(" ".join(map(str, words)))
    part.rename(file)


def _use(ctx: Context, model: Model, file: Path) -> Any:
    return [os.getpid(), model.pid, model.used]


def _meet(ctx: Context, model: Model, file: Path) -> Any:
    """End when another job runs, too."""
    (file.parent / f"{file.name}.{ctx.job_id}").touch()
    while len(list(file.parent.glob(f"{file.name}.*"))) < 2:
        time.sleep(0.01)
    return os.getpid()


def _context(ctx: Context, model: Model, file: Path) -> Any:
    ctx.progress(1, 2, "half way")
    ctx.log.warning("a line of ctx.log")
    logging.getLogger("pool.standard").warning("a line of logging")
    ctx.enqueue(OnLoop())
    once = ctx.once("effect").run(lambda effect_id: "done")
    return [ctx.attempt, ctx.tenant, ctx.deadline is None, once]


def _session(ctx: Context, model: Model, file: Path) -> Any:
    return ctx.session


def _leak(ctx: Context, model: Model, file: Path) -> Any:
    """Leave what a later job must not meet, and say what an earlier one has left."""
    before = _variable.get(), signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    _variable.set("set")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return before


def _keep(ctx: Context, model: Model, file: Path) -> Any:
    _contexts.append(ctx)


def _use_kept(ctx: Context, model: Model, file: Path) -> Any:
    refused = []
    for use in (lambda: _contexts[0].progress(1), lambda: _contexts[0].once("late").run(lambda effect_id: 1)):
        try:
            use()
        except RuntimeError as error:
            refused.append(str(error))
    return refused


def _lookup(ctx: Context, model: Model, file: Path) -> Any:
    raise KeyError("nothing there")


def _fail(ctx: Context, model: Model, file: Path) -> Any:
    raise ValueError("boom")


def _leave(ctx: Context, model: Model, file: Path) -> Any:
    raise SystemExit(3)


def _kill(ctx: Context, model: Model, file: Path) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(ctx: Context, model: Model, file: Path) -> Any:
    os._exit(4)


def _garbage(ctx: Context, model: Model, file: Path) -> Any:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\0" * 8 + b"garbage, and more of it")
        except OSError:
            continue
    time.sleep(SLEEP)


def _sleep(ctx: Context, model: Model, file: Path) -> Any:
    _say(file, os.getpid())
    try:
        time.sleep(SLEEP)
    finally:
        file.with_suffix(".cleaned").touch()


def _deaf(ctx: Context, model: Model, file: Path) -> Any:
    """Mind neither errors nor signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    _say(file, os.getpid())
    time.sleep(SLEEP)


def _soft(ctx: Context, model: Model, file: Path) -> Any:
    try:
        time.sleep(SLEEP)
    except SoftTimeLimitExceeded:
        return ["in good order", os.getpid(), threading.current_thread() is threading.main_thread()]


def _grow(ctx: Context, model: Model, file: Path) -> Any:
    model.ballast = bytearray(150_000_000)  # type: ignore[attr-defined]
    return os.getpid()


def _fork(ctx: Context, model: Model, file: Path) -> Any:
    """A forked process that ends as a program does is not taken for the handler."""
    if not (pid := os.fork()):
        return "the forked process's result"
    os.waitpid(pid, 0)
    return "the handler's"


CASES: dict[str, Callable[[Context, Model, Path], Any]] = {
    "use": _use,
    "meet": _meet,
    "context": _context,
    "session": _session,
    "leak": _leak,
    "keep": _keep,
    "use kept": _use_kept,
    "none": lambda ctx, model, file: None,
    "snooze": lambda ctx, model, file: Snooze(3600, reason="not yet"),
    "discard": lambda ctx, model, file: Discard("nothing to do"),
    "retry": lambda ctx, model, file: Retry(3600, reason="come back later"),
    "not JSON": lambda ctx, model, file: object(),
    "lookup": _lookup,
    "fail": _fail,
    "leave": _leave,
    "kill": _kill,
    "exit": _exit,
    "garbage": _garbage,
    "sleep": _sleep,
    "deaf": _deaf,
    "soft": _soft,
    "soft, not caught": lambda ctx, model, file: time.sleep(SLEEP),
    "grow": _grow,
    "fork": _fork,
    "setups": lambda ctx, model, file: _setups,
}
