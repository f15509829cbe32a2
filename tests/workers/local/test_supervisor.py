"""The supervisor on small programs of our own: starting, restarting, stopping in order, and being killed itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.polling import until

from penstock.config.errors import PenstockError
from penstock.workers.local.up.guard import alive
from penstock.workers.local.up.lock import FolderInUse, folder_lock
from penstock.workers.local.up.processes import Child, Service
from penstock.workers.local.up.supervisor import Supervisor

STEADY = """
import signal, sys, time
def stop(*_):
    print("stopping", time.monotonic(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
WITH_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
print("ready", flush=True)
child.wait()
"""


def service(name: str, code: str, stage: int = 0, ready: Callable[[Child], bool] | None = None) -> Service:
    says_ready = ready or (lambda child: "ready" in child.output())
    return Service(name, [sys.executable, "-c", code], stage, says_ready, dict(os.environ))


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, messages: list[str]) -> Iterator[Supervisor]:
    with folder_lock(tmp_path) as lock:
        supervisor = Supervisor(tmp_path / "log", lock=lock, grace_seconds=30, say=messages.append)
        yield supervisor
        supervisor.stop(hurry=lambda: True)


@pytest.fixture
def watched(supervisor: Supervisor) -> Iterator[Supervisor]:
    ended = threading.Event()
    thread = threading.Thread(target=supervisor.watch, args=(ended,))
    thread.start()
    yield supervisor
    ended.set()
    thread.join()


def pid_of(supervisor: Supervisor, name: str) -> int:
    pid = supervisor.children[name].pid
    assert pid is not None
    return pid


def test_a_service_is_ready_when_it_says_so_and_its_output_is_in_its_log(
    supervisor: Supervisor, messages: list[str], tmp_path: Path
) -> None:
    supervisor.start([service("one", STEADY)], threading.Event())
    assert supervisor.children["one"].ready
    assert messages == [f"one is ready (pid {pid_of(supervisor, 'one')})"]
    assert "ready" in (tmp_path / "log" / "one.log").read_text()


def test_a_service_that_ends_while_starting_is_an_error_that_shows_its_log(supervisor: Supervisor) -> None:
    broken = service("broken", "import sys; print('no such thing'); sys.exit(3)", ready=lambda child: False)
    with pytest.raises(PenstockError, match=r"(?s)broken ended with exit code 3.*no such thing"):
        supervisor.start([broken], threading.Event())


def test_a_service_that_dies_is_started_again_with_a_message(
    watched: Supervisor, messages: list[str], tmp_path: Path
) -> None:
    watched.start([service("one", STEADY)], threading.Event())
    first = pid_of(watched, "one")
    os.kill(first, signal.SIGKILL)
    until(lambda: watched.children["one"].pid not in (None, first) and watched.children["one"].ready)
    assert watched.children["one"].restarts == 1
    text = "\n".join(messages)
    assert (
        f"one (pid {first}) ended with SIGKILL; starts again in 0.5 s; its log: {tmp_path / 'log' / 'one.log'}" in text
    )
    assert f"one starts again (pid {watched.children['one'].pid})" in text


def test_a_service_that_keeps_dying_is_started_less_and_less_often(tmp_path: Path) -> None:
    child = Child(service("short", "pass"), tmp_path / "short.log")
    pauses = []
    for _ in range(9):
        child.start()
        until(lambda: child.process is not None and child.process.poll() is not None)

        now = time.monotonic()
        assert child.ended() == 0
        pauses.append(round(child.start_at - now, 1))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_stages_are_stopped_one_after_the_other(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(
        [service(name, STEADY, stage) for name, stage in (("b", 1), ("a", 0), ("c", 2))], threading.Event()
    )
    pids = [pid_of(supervisor, name) for name in "abc"]
    supervisor.stop()
    stopped = {
        name: float((tmp_path / "log" / f"{name}.log").read_text().split("stopping")[1].split()[0]) for name in "abc"
    }
    assert stopped["a"] < stopped["b"] < stopped["c"]
    assert not any(alive(pid) for pid in pids)
    supervisor.children.clear()


def test_a_service_that_does_not_stop_is_killed_in_a_hurry(supervisor: Supervisor, messages: list[str]) -> None:
    supervisor.start([service("stubborn", STUBBORN)], threading.Event())
    pid = pid_of(supervisor, "stubborn")
    supervisor.stop(hurry=lambda: True)
    assert not alive(pid)
    assert messages[-1] == "stubborn has stopped with SIGKILL"


def test_the_children_of_a_dead_service_die_with_it(watched: Supervisor) -> None:
    watched.start([service("parent", WITH_A_CHILD)], threading.Event())
    forked = int(watched.children["parent"].output().split()[1])
    os.kill(pid_of(watched, "parent"), signal.SIGKILL)
    until(lambda: not alive(forked))


def test_a_supervisor_that_is_killed_leaves_nothing_running_and_then_frees_the_folder(tmp_path: Path) -> None:
    script = tmp_path / "supervise.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys, threading
            from pathlib import Path
            from penstock.workers.local.up.lock import folder_lock
            from penstock.workers.local.up.processes import Service
            from penstock.workers.local.up.supervisor import Supervisor
            folder = Path({str(tmp_path)!r})
            with folder_lock(folder) as lock:
                supervisor = Supervisor(folder / "log", lock=lock, grace_seconds=1.5, say=print)
                codes = {{"steady": {STEADY!r}, "stubborn": {STUBBORN!r}, "parent": {WITH_A_CHILD!r}}}
                ready = lambda child: "ready" in child.output()
                services = [Service(name, [sys.executable, "-c", code], stage, ready, dict(os.environ))
                            for stage, (name, code) in enumerate(codes.items())]
                supervisor.start(services, threading.Event())
                print("pids", *(child.pid for child in supervisor.children.values()),
                      supervisor.children["parent"].output().split()[1], flush=True)
                threading.Event().wait()
            """
        )
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("pids"))
    pids = [int(word) for word in line.split()[1:]]
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    process.stdout.close()
    with (
        pytest.raises(FolderInUse, match=rf"pid {process.pid}\) was killed, and its services"),
        folder_lock(tmp_path),
    ):
        pass
    until(lambda: not any(alive(pid) for pid in pids))

    def lock_is_free() -> bool:
        try:
            with folder_lock(tmp_path):
                return True
        except FolderInUse:
            return False

    until(lock_is_free)


def test_a_guard_that_was_killed_is_replaced(supervisor: Supervisor) -> None:
    guard = supervisor._guard
    first = guard._process.pid
    os.kill(first, signal.SIGKILL)
    guard._process.wait()
    supervisor.start([service("one", STEADY)], threading.Event())
    assert guard._process.pid != first
    assert alive(guard._process.pid)
