"""Functions that isolated handlers of these tests call, by name."""

from __future__ import annotations

import asyncio
import enum
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from penstock.workers import Context, Discard, Permanent, Retry, Snooze

SLEEP = 3600

CASES: dict[str, Callable[[Context, Path], Any]] = {}


def case(function: Callable[[Context, Path], Any]) -> Callable[[Context, Path], Any]:
    CASES[function.__name__] = function
    return function


# Programs that need a process of their own.


@case
def asyncio_run(ctx: Context, file: Path) -> Any:
    return asyncio.run(asyncio.sleep(0, "ran"))


@case
def asgiref(ctx: Context, file: Path) -> Any:
    from asgiref.sync import async_to_sync

    return async_to_sync(asyncio.sleep)(0, "ran")


@case
def django_orm(ctx: Context, file: Path) -> Any:
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
        django.setup()
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT 'ran'")
        return cursor.fetchone()[0]


@case
def process(ctx: Context, file: Path) -> Any:
    child = multiprocessing.Process(target=file.write_text, args=("ran",))
    child.start()
    child.join()
    return file.read_text()


@case
def pool(ctx: Context, file: Path) -> Any:
    with multiprocessing.Pool(2) as processes:
        return "ran" if processes.map(abs, [-1, -2]) == [1, 2] else None


@case
def forkserver_pool(ctx: Context, file: Path) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as processes:
        session = processes.submit(os.getsid, 0).result()
    return "ran" if session == os.getsid(0) else "in another session"


@case
def own_signals(ctx: Context, file: Path) -> Any:
    return "ran" if signal.getsignal(signal.SIGINT) is signal.default_int_handler else None


@case
def fork(ctx: Context, file: Path) -> Any:
    """A forked process that ends as programs do is not taken for the handler."""
    results = []
    for end in (lambda: None, lambda: sys.exit(7), lambda: 1 / 0):
        if not (pid := os.fork()):
            end()
            return "the forked process's result"
        results.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return "ran" if results == [0, 7, 1] else results


# Ends.


@case
def sys_exit(ctx: Context, file: Path) -> Any:
    sys.exit(3)


@case
def os_exit(ctx: Context, file: Path) -> Any:
    os._exit(3)


@case
def os_exit_255(ctx: Context, file: Path) -> Any:
    os._exit(255)


@case
def exit_in_thread(ctx: Context, file: Path) -> Any:
    thread = threading.Thread(target=os._exit, args=(4,))
    thread.start()
    thread.join()


@case
def keyboard_interrupt(ctx: Context, file: Path) -> Any:
    raise KeyboardInterrupt


@case
def stop_iteration(ctx: Context, file: Path) -> Any:
    raise StopIteration(1)


@case
def cancelled_error(ctx: Context, file: Path) -> Any:
    raise asyncio.CancelledError


@case
def odd_error(ctx: Context, file: Path) -> Any:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

        def __reduce__(self) -> Any:
            raise RuntimeError

    raise Odd


@case
def odd_text(ctx: Context, file: Path) -> Any:
    raise ValueError("NUL \0, half \ud800, " + "long" * 100_000)


@case
def local_error(ctx: Context, file: Path) -> Any:
    class Gone(LookupError): ...

    raise Gone("a class that only the child knows")


@case
def permanent(ctx: Context, file: Path) -> Any:
    raise Permanent("will not mend")


@case
def not_json(ctx: Context, file: Path) -> Any:
    return object()


@case
def not_a_number(ctx: Context, file: Path) -> Any:
    return {"mean": [1.0, float("nan")], "nothing": None}


@case
def recursive(ctx: Context, file: Path) -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@case
def real_time_signal(ctx: Context, file: Path) -> Any:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


@case
def closed_streams(ctx: Context, file: Path) -> Any:
    sys.stdout.close()
    sys.stderr.close()
    return "ran"


@case
def snooze(ctx: Context, file: Path) -> Any:
    return Snooze(3600, reason="not yet")


@case
def discard(ctx: Context, file: Path) -> Any:
    return Discard("nothing to do")


@case
def retry(ctx: Context, file: Path) -> Any:
    return Retry(3600, reason="come back later")


@case
def odd_progress(ctx: Context, file: Path) -> Any:
    refused = []
    for arguments in ((object(),), (1, "many"), (float("nan"),), ("1",)):
        try:
            ctx.progress(*arguments)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            refused.append(True)
    ctx.progress(1, 2, "fine")
    return len(refused)


@case
def details(ctx: Context, file: Path) -> Any:
    return [ctx.enqueued_at.isoformat(), ctx.attempt, ctx.deadline is not None, ctx.tenant]


# Logs.


class Colour(enum.StrEnum):
    RED = "red"


@case
def logs(ctx: Context, file: Path) -> Any:
    extra = {"colour": Colour.RED, "object": threading.current_thread()}
    logging.getLogger("iso.standard").info("an %s line", "ordinary", extra=extra)
    logging.getLogger("iso.standard").debug("below the worker's level")
    ctx.log.warning("a line of ctx.log")
    try:
        raise ValueError("logged")
    except ValueError:
        logging.getLogger("iso.standard").exception("with a traceback")


@case
def many_logs(ctx: Context, file: Path) -> Any:
    def log_lines(name: str) -> None:
        for number in range(500):
            ctx.log.info("line %s %d", name, number)
            ctx.progress(number, 500)

    threads = [threading.Thread(target=log_lines, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@case
def log_of_a_process(ctx: Context, file: Path) -> Any:
    """A process of the handler's logs to stderr; the pipe is the handler's alone."""
    process = multiprocessing.get_context("fork").Process(target=logging.getLogger("iso").info, args=("elsewhere",))
    process.start()
    process.join()
    logging.getLogger("iso").info("here")
    return process.exitcode


# Ends that come from outside.


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({SLEEP})"])


@case
def family(ctx: Context, file: Path) -> Any:
    """Starts a program and a forked process, writes their ids and its own, and sleeps."""
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(SLEEP,))
    forked.start()
    _announce(file, os.getpid(), _sleeper().pid, forked.pid)
    time.sleep(SLEEP)


@case
def deaf_family(ctx: Context, file: Path) -> Any:
    """The same, and none of them minds SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return family(ctx, file)


@case
def dying_family(ctx: Context, file: Path) -> Any:
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(SLEEP,))
    forked.start()
    _announce(file, _sleeper().pid, forked.pid)
    os._exit(5)


@case
def orphans(ctx: Context, file: Path) -> Any:
    _announce(file, _sleeper().pid)
    return "ran"


@case
def last_words(ctx: Context, file: Path) -> Any:
    """Returns its result when it gets SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    _announce(file, os.getpid())
    stop.wait()
    return "in time"


@case
def kill_fork_server(ctx: Context, file: Path) -> Any:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.5)  # the worker has learned of it
    return "ran"


@case
def kill_fork_server_and_itself(ctx: Context, file: Path) -> Any:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.5)
    os._exit(1)


def _announce(file: Path, *pids: int | None) -> None:
    part = file.with_suffix(".part")
    part.write_text(" ".join(map(str, pids)))
    part.rename(file)
