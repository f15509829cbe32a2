"""The parent of worker processes, over processes that follow a script."""

from __future__ import annotations

import sys
import textwrap
import threading
from pathlib import Path

import pytest

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.config.settings import Settings
from penstock.workers.engines.renewal import parent as module
from penstock.workers.engines.renewal import wear
from penstock.workers.engines.renewal.link import VARIABLE
from penstock.workers.engines.renewal.parent import Parent
from penstock.workers.engines.renewal.starts import program
from penstock.workers.engines.renewal.wear import Wear
from penstock.workers.executor.attempt import memory

PROLOGUE = f"""
import os, socket, sys
descriptor, number = os.environ[{VARIABLE!r}].split()
parent, number = socket.socket(fileno=int(descriptor)), int(number)
say = lambda line: parent.sendall(line + b"\\n")

def work_until_retired():
    say(b"ready"); say(b"renew")
    assert parent.recv(100) == b"retire\\n"
    sys.exit(0)

"""


def run(tmp_path: Path, script: str, processes: int = 1) -> int:
    """Run a parent over processes of this script. The parent is in a process of its own: it handles signals."""
    file = tmp_path / "process.py"
    file.write_text(PROLOGUE + textwrap.dedent(script))
    return Parent(program([sys.executable, str(file)]), processes=processes).run()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)


def test_it_ends_with_the_exit_code_of_a_process_that_ends_unasked(tmp_path: Path) -> None:
    assert run(tmp_path, "sys.exit(7)") == 7


def test_it_ends_with_128_and_the_signal_that_killed_a_process(tmp_path: Path) -> None:
    assert run(tmp_path, "os.kill(os.getpid(), 9)") == 137


def test_a_process_retires_once_its_successor_is_ready(tmp_path: Path) -> None:
    code = run(
        tmp_path,
        """
        if number == 1:
            work_until_retired()
        say(b"ready")
        sys.exit(3)
        """,
    )
    assert code == 3


def test_successors_that_fail_are_tried_again_until_one_is_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = run(
        tmp_path,
        """
        if number == 1:
            work_until_retired()
        if number < 4:
            sys.exit(2)
        say(b"ready")
        sys.exit(5)
        """,
    )
    assert code == 5
    assert caplog.text.count("ended with exit code 2 before it was ready; worker process 1") == 2


def test_a_successor_that_is_not_ready_in_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    code = run(
        tmp_path,
        """
        import time
        if number == 1:
            say(b"ready"); say(b"renew")
            while not os.path.exists("third"):
                time.sleep(0.01)
            sys.exit(4)
        if number == 3:
            open("third", "w").close()
        time.sleep(3600)
        """,
    )
    assert code == 4
    assert "ended with SIGKILL before it was ready" in caplog.text


def test_the_end_of_a_process_ends_those_that_still_retire(tmp_path: Path) -> None:
    code = run(
        tmp_path,
        """
        import signal
        if number == 1:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            say(b"ready"); say(b"renew")
            while True:
                signal.pause()
        say(b"ready")
        sys.exit(6)
        """,
    )
    assert code == 6


def test_of_several_one_that_dies_is_started_again_and_again_until_all_end_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = run(
        tmp_path,
        """
        say(b"ready")
        if number < 6:
            os.kill(os.getpid(), 9) if number % 2 else sys.exit(3)
        sys.exit(0)
        """,
        processes=2,
    )
    assert code == 0
    assert caplog.text.count("has ended with SIGKILL; the next try") == 3
    assert caplog.text.count("has ended with exit code 3; the next try") == 2


def test_of_several_none_of_which_was_ever_ready_the_first_end_ends_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path, "import time; sys.exit(2) if number == 2 else time.sleep(3600)", processes=2) == 2
    assert "the next try" not in caplog.text


def test_of_several_only_one_is_renewed_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    code = run(
        tmp_path,
        """
        import time
        if number < 3:
            say(b"ready"); say(b"renew")
            assert parent.recv(100) == b"retire\\n"
            open(f"{__file__}.{number}", "w").close()
            sys.exit(0)
        say(b"ready")
        while not all(os.path.exists(f"{__file__}.{retired}") for retired in (1, 2)):
            time.sleep(0.01)
        sys.exit(0)
        """,
        processes=2,
    )
    assert code == 0
    steps = [record.getMessage() for record in caplog.records if "to follow" in record.msg or "is ready" in record.msg]
    assert ["starts" in step for step in steps] == [True, False, True, False]


def test_exits_that_are_not_in_order_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "process.py"
    file.write_text("import sys; sys.exit(9)")
    reports: list[tuple[int, str]] = []
    reported = threading.Event()

    def died(pid: int, how: str) -> None:
        reports.append((pid, how))
        reported.set()

    assert Parent(program([sys.executable, str(file)]), died=died).run() == 9
    assert reported.wait(60)
    assert [how for _, how in reports] == ["exit code 9"]


def test_a_report_that_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "process.py"
    file.write_text("import sys; sys.exit(9)")

    def died(pid: int, how: str) -> None:
        raise LedgerUnavailable("the ledger is away")

    assert Parent(program([sys.executable, str(file)]), died=died).run() == 9
    [record] = [record for record in caplog.records if "is not on record" in record.getMessage()]
    assert "ended with exit code 9" in record.getMessage()
    assert record.exc_info is not None


def test_a_process_asks_once_and_within_a_tenth_of_its_limit() -> None:
    limits = set()
    for _ in range(200):
        requests: list[int] = []
        process = Wear(Settings(max_jobs=50), lambda: requests.append(process.jobs))  # noqa: B023
        for _ in range(60):
            process.ended(None)  # type: ignore[arg-type]
        assert len(requests) == 1
        limits.add(requests[0])
    assert min(limits) >= 45
    assert max(limits) <= 55
    assert len(limits) > 5


def test_a_process_asks_once_its_memory_is_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 100
    for user in (memory, wear):
        monkeypatch.setattr(user, "resident_memory", lambda pid=None: size)
    requests: list[int] = []
    process = Wear(Settings(max_memory=150), lambda: requests.append(process.jobs))
    process.check_start()
    process.ended(None)  # type: ignore[arg-type]
    size = 200
    process.ended(None)  # type: ignore[arg-type]
    process.ended(None)  # type: ignore[arg-type]
    assert requests == [2]


def test_with_a_pool_of_processes_the_limits_are_those_of_its_processes() -> None:
    assert Wear.applies(Settings(max_jobs=50))
    assert not Wear.applies(Settings(max_jobs=50, max_memory=2**30, pool="processes"))
    assert not Wear.applies(Settings())


def test_a_limit_below_what_a_process_needs_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"max_memory is 1\.0 MiB, but this worker uses .* MiB before its first job; set"
    ):
        Wear(Settings(max_memory=2**20), lambda: None).check_start()
