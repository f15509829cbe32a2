"""`penstock probe`, and the sockets that it asks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.polling import until

from penstock.config.process import probe
from penstock.workers.telemetry.health.probe_socket import ProbeSocket

Answer = Callable[..., ProbeSocket]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """`answer(**fields)`: a process that answers so, in a folder of the test's own."""
    monkeypatch.setattr(probe, "folders", lambda: [str(tmp_path / "penstock-1")])
    monkeypatch.setattr("penstock.workers.telemetry.health.probe_socket.folders", probe.folders)
    sockets: list[ProbeSocket] = []

    def answer(**fields: Any) -> ProbeSocket:
        who = {"pid": 7, "name": "celery@w1", "role": "worker", "prefix": "p", "live": None, "ready": None}
        sockets.append(ProbeSocket(lambda: {**who, **fields}))
        sockets[-1].start()
        return sockets[-1]

    yield answer
    for each in sockets:
        each.close()


def test_all_processes_must_be_well(answer: Answer) -> None:
    answer()
    answer(name="dispatcher@w2", pid=8, role="dispatcher", ready="the broker does not answer")
    assert probe.probe("live") == (
        True,
        sorted(
            ["worker celery@w1 (pid 7): live", "dispatcher dispatcher@w2 (pid 8): live"],
            key=probe.probe("live")[1].index,
        ),
    )
    good, lines = probe.probe("ready")
    assert not good
    assert "dispatcher dispatcher@w2 (pid 8): not ready: the broker does not answer" in lines
    assert probe.probe("ready", role="worker")[0]
    assert probe.probe("ready", pid=7)[0]
    assert probe.probe("ready", name="w1")[0]
    assert probe.probe("ready", name="celery@w1")[0]
    assert not probe.probe("ready", pid=8)[0]
    assert probe.probe("live", prefix="p")[0]
    assert probe.probe("live", prefix="q") == (False, ["no worker or dispatcher of this user runs here with prefix q"])


def test_no_process_is_not_well(answer: Answer) -> None:
    assert probe.probe("live") == (False, ["no worker or dispatcher of this user runs here"])
    answer().close()
    assert not probe.probe("live")[0]


def test_sockets_of_processes_that_died_are_removed(answer: Answer, tmp_path: Path) -> None:
    answer()
    dead = tmp_path / "penstock-1" / "99-abcd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    assert probe.probe("live") == (True, ["worker celery@w1 (pid 7): live"])
    assert not dead.exists()


def test_killed_processes_leave_no_socket_once_another_one_starts_or_ends(answer: Answer, tmp_path: Path) -> None:
    folder = tmp_path / "penstock-1"
    first = answer()
    for other in (answer, first.close):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "99-abcd.sock"))
        other()
        assert not (folder / "99-abcd.sock").exists()
    [last] = folder.iterdir()
    assert probe.probe("live")[0], last


def test_a_process_that_does_not_answer_is_not_well(answer: Answer, tmp_path: Path) -> None:
    answer()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "penstock-1" / "99-abcd.sock"))
        listener.listen(1)
        good, lines = probe.probe("live", timeout_seconds=0.2)
    assert not good
    assert "process (pid 99): not live: it does not answer" in lines


def test_a_socket_is_for_its_owner_alone(answer: Answer, tmp_path: Path) -> None:
    answer()
    folder = tmp_path / "penstock-1"
    [path] = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    folder.chmod(0o755)
    assert not probe.probe("live")[0], "sockets in a folder of others may lie"


def test_a_process_without_a_place_for_its_socket_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = str(tmp_path / "missing" / "penstock-1")
    monkeypatch.setattr("penstock.workers.telemetry.health.probe_socket.folders", lambda: [missing])
    endpoint = ProbeSocket(dict)
    endpoint.start()
    endpoint.close()
    assert "penstock probe cannot ask this process" in caplog.text


def test_an_answer_that_fails_ends_neither_the_socket_nor_the_process(answer: Answer, tmp_path: Path) -> None:
    calls: list[int] = []

    def fails_once() -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 1:
            raise SystemExit("odd")
        return {"pid": 5, "live": None, "ready": None}

    endpoint = ProbeSocket(fails_once)
    endpoint.start()
    assert not probe.probe("live", pid=os.getpid())[0]
    until(lambda: probe.probe("live") == (True, ["process (pid 5): live"]))
    endpoint.close()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", "probe", *words],
        env={"PATH": "/usr/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_has_exit_codes_for_probes(answer: Answer, tmp_path: Path) -> None:
    folder = {"XDG_RUNTIME_DIR": str(tmp_path)}
    (tmp_path / "penstock-1").mkdir(mode=0o700)
    (tmp_path / f"penstock-{os.getuid()}").symlink_to(tmp_path / "penstock-1")
    assert run("never", **folder).returncode == 2
    assert run("live", "--role", "gateway", **folder).returncode == 2
    (tmp_path / f"penstock-{os.getuid()}").unlink()
    (tmp_path / "penstock-1").rename(tmp_path / f"penstock-{os.getuid()}")
    ended = run("live", "--name", "none-such", **folder)
    assert (ended.returncode, ended.stdout) == (
        1,
        "no worker or dispatcher of this user runs here with name none-such\n",
    )


def test_a_probe_loads_little() -> None:
    code = (
        "import sys, penstock.__main__; sys.argv = ['penstock', 'probe', 'live', '--pid', '1']\n"
        "try: penstock.__main__.main()\n"
        "except SystemExit: pass\n"
        "heavy = ['typer', 'rich', 'pydantic', 'sqlalchemy', 'celery', 'dramatiq', 'kombu', 'logging', 'asyncio',\n"
        "         'penstock.schemas', 'penstock.workers']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
