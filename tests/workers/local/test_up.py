"""`penstock up` as people run it: a process of its own in an empty folder."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.polling import until

from penstock.workers.local.up.guard import alive
from penstock.workers.local.up.redis_server import RedisServer, free_port

EXAMPLE = Path(__file__).parents[3] / "examples" / "acme"
PENSTOCK = [sys.executable, "-c", "from penstock.workers.cli import main; main()"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Up:
    """A running `penstock up`, its output, and the pids it names."""

    def __init__(self, folder: Path, environment: dict[str, str], *words: str, cwd: Path | None = None) -> None:
        self.folder, self.environment = folder, environment
        self.process = subprocess.Popen(
            [*PENSTOCK, "up", "--folder", str(folder), *words],
            cwd=cwd or folder.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the services, the latest of each."""
        return {name: int(pid) for name, pid in re.findall(r"(\S+) is ready \(pid (\d+)\)", self.text)}

    def wait_ready(self) -> None:
        until(lambda: "Ctrl-C stops everything." in self.text or self.process.poll() is not None, seconds=240)
        assert self.process.poll() is None, self.text

    def end(self, number: int) -> int:
        """Signal it and wait for its end; returns the exit code."""
        self.process.send_signal(number)
        code = self.process.wait()
        self._reader.join()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        until(lambda: not any(alive(pid) for pid in self.pids.values()))


Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `penstock up` in a folder below the test's own, on a Flower port of its own."""
    started: list[Up] = []

    def start(*words: str, folder: str = "var", cwd: Path | None = None, **variables: str) -> Up:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "FLOWER_"))}
        ports = {name: str(free_port()) for name in ("PENSTOCK_FLOWER_PORT", "PENSTOCK_GATEWAY_PORT")}
        environment = {**kept, **ports, **variables}
        started.append(Up(tmp_path / folder, environment, *words, cwd=cwd))
        return started[-1]

    yield start
    for up in started:
        up.close()


def sourced(up: Up) -> dict[str, str]:
    """The environment of a shell that has sourced penstock.env."""
    command = f". {shlex.quote(str(up.folder / 'penstock.env'))} && env -0"
    out = subprocess.run(["sh", "-c", command], env=up.environment, capture_output=True, check=True).stdout
    return dict(entry.split("=", 1) for entry in out.decode().split("\0") if "=" in entry)


def flower_status(up: Up, login: str | None) -> int:
    url = f"http://127.0.0.1:{up.environment['PENSTOCK_FLOWER_PORT']}/api/penstock/workers"
    request = urllib.request.Request(url)
    if login is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def kinds_of_gateway(up: Up, key: str) -> set[str]:
    url = f"http://127.0.0.1:{up.environment['PENSTOCK_GATEWAY_PORT']}/v1/kinds"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return {kind["kind"] for kind in json.load(answer)["kinds"]}


def test_up_without_configuration_runs_everything_until_ctrl_c(start: Start, tmp_path: Path) -> None:
    up = start("--import", "acme.handlers", cwd=EXAMPLE)
    up.wait_ready()
    assert set(up.pids) == {"redis", "worker-celery", "worker-dramatiq", "dispatcher", "gateway", "flower"}
    assert all(alive(pid) for pid in up.pids.values())
    assert re.search(r"worker celery +queues .*emails.*syncs", up.text)
    assert re.search(r"worker dramatiq +queues .*reports.*uploads", up.text)
    login = re.search(r"user (\S+), password (\S+)", up.text)
    assert login is not None
    assert flower_status(up, None) == 401
    assert flower_status(up, f"{login[1]}:{login[2]}") == 200

    key = (up.folder / "gateway.key").read_text().strip()
    assert kinds_of_gateway(up, key) >= {"invoice.write", "email.send"}

    environment = sourced(up)
    words = [
        "enqueue",
        "invoice.write",
        json.dumps({"number": 7, "customer": "Ada"}),
        "--wait",
        "--import",
        "acme.handlers",
    ]
    done = subprocess.run([*PENSTOCK, *words], cwd=EXAMPLE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    written = list((up.folder / "storage" / "invoices").iterdir())
    assert [path.name for path in written] == ["7.txt"]
    assert "Ada" in written[0].read_text()

    pids = up.pids
    assert up.end(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in pids.values())
    order = [name for name in re.findall(r"(\S+) has stopped$", up.text, re.MULTILINE) if name != "everything"]
    assert order[0] == "gateway"
    assert set(order[1:3]) == {"worker-celery", "worker-dramatiq"}
    assert order[3:] == ["dispatcher", "flower", "redis"]
    assert sorted(path.name for path in (up.folder / "log").iterdir()) == [
        "dispatcher.log",
        "flower.log",
        "gateway.log",
        "redis.log",
        "worker-celery.log",
        "worker-dramatiq.log",
    ]
    assert list(tmp_path.iterdir()) == [up.folder]


def test_a_second_up_in_the_folder_is_refused_with_the_pid_of_the_first(start: Start) -> None:
    first = start()
    first.wait_ready()
    second = start()
    assert second.process.wait() != 0
    until(lambda: f"(pid {first.process.pid})" in second.text)
    assert first.process.poll() is None
    assert first.end(signal.SIGTERM) == 0


def test_a_port_in_use_is_named_with_what_to_do_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for variable, what in (("PENSTOCK_FLOWER_PORT", "Flower"), ("PENSTOCK_REDIS_PORT", "Redis")):
            up = start(folder=what, **{variable: str(port)})
            assert up.process.wait() != 0
            until(lambda up=up, variable=variable: f"{variable}={port + 1} penstock up" in up.text)
            assert f"port {port} on 127.0.0.1, for {what}, is in use" in up.text
            assert not up.pids


def test_a_killed_up_leaves_no_process_and_its_folder_can_be_used_again(start: Start) -> None:
    first = start()
    first.wait_ready()
    redis_url = sourced(first)["PENSTOCK_BROKER_URL"]
    pids = list(first.pids.values())
    first.end(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids))

    def starts_again() -> bool:
        again = start()
        until(lambda: "Ctrl-C stops everything." in again.text or again.process.poll() is not None, seconds=240)
        if again.process.poll() is None:
            assert sourced(again)["PENSTOCK_BROKER_URL"] == redis_url, "the port should be that of the last time"
            return again.end(signal.SIGINT) == 0
        assert "was killed, and its services is still being stopped" in again.text
        return False

    until(starts_again, seconds=120)


def test_a_worker_that_dies_is_restarted_and_a_configured_broker_is_used(
    start: Start, redis_server: RedisServer, prefix: str
) -> None:
    up = start(PENSTOCK_BROKER_URL=redis_server.url, PENSTOCK_PREFIX=prefix)
    up.wait_ready()
    assert "redis" not in up.pids
    assert f"the broker is {redis_server.url}, as configured" in up.text
    first = up.pids["worker-dramatiq"]
    os.kill(first, signal.SIGKILL)
    until(lambda: up.pids["worker-dramatiq"] != first)
    assert f"worker-dramatiq (pid {first}) ended with SIGKILL; starts again in" in up.text
    assert up.end(signal.SIGINT) == 0
    with closing(sqlite3.connect(up.folder / "penstock.db")) as ledger:
        stopped = dict(ledger.execute("SELECT pid, stopped_at IS NOT NULL FROM penstock_workers"))
    assert stopped[first] == 0
    assert [pid for pid, in_order in stopped.items() if not in_order] == [first]


def test_a_redis_that_is_killed_comes_back_with_its_jobs_and_the_workers_go_on(start: Start) -> None:
    up = start("--import", "acme.handlers", cwd=EXAMPLE)
    up.wait_ready()
    first = up.pids["redis"]
    os.kill(first, signal.SIGKILL)
    until(lambda: up.pids["redis"] != first)
    words = ["enqueue", "invoice.write", json.dumps({"number": 8, "customer": "Grace"}), "--import", "acme.handlers"]
    subprocess.run([*PENSTOCK, *words], cwd=EXAMPLE, env=sourced(up), check=True, capture_output=True)
    until(lambda: (up.folder / "storage" / "invoices" / "8.txt").exists(), seconds=120)
    assert up.end(signal.SIGTERM) == 0


def test_an_unreachable_broker_is_reported_in_a_line_and_nothing_stays(start: Start, tmp_path: Path) -> None:
    (tmp_path / "only_kinds.py").touch()
    broker = {"PENSTOCK_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0", "PENSTOCK_BROKER_TIMEOUT_SECONDS": "0.5"}
    up = start("--import", "only_kinds", **broker)
    assert up.process.wait() == 1
    until(lambda: "penstock: " in up.text)
    assert "--import only_kinds adds no handler" in up.text
    assert "Traceback" not in up.text
    assert not up.pids


POISON = '''
import os, signal
from penstock.schemas import Job
from penstock.workers import handles

class Poison(Job, kind="up.poison", queue="poison"):
    """Kills the worker that runs it."""

@handles(Poison)
def poison(job: Poison) -> None:
    bytearray(150_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
'''


def test_a_job_that_kills_its_processes_is_quarantined_with_what_is_known_of_their_deaths(
    start: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "poison.py").write_text(POISON)
    up = start("--import", "poison", cwd=home, PENSTOCK_LEASE_SECONDS="1")
    up.wait_ready()
    words = ["enqueue", "up.poison", "{}", "--import", "poison"]
    subprocess.run([*PENSTOCK, *words], cwd=home, env=sourced(up), check=True, capture_output=True)

    def letters() -> list[str]:
        with closing(sqlite3.connect(up.folder / "penstock.db", timeout=30)) as ledger:
            return [f"{row[0]}: {row[1]}" for row in ledger.execute("SELECT reason, detail FROM penstock_dead_letters")]

    until(letters, seconds=120)
    [letter] = letters()
    apart = r"its child process \d+ was killed by SIGKILL .*"
    assert re.fullmatch(rf"crashed: its worker crashed 3 times while it ran, the last time: {apart}", letter), letter
    with closing(sqlite3.connect(up.folder / "penstock.db")) as ledger:
        select = "SELECT error FROM penstock_attempts WHERE outcome = 'crashed' ORDER BY fence"
        first, *others = [row[0] for row in ledger.execute(select)]
    host = re.escape(socket.gethostname())
    death = re.search(rf"host {host}, pid \d+; ended with SIGKILL; peak memory (\d+) MiB", first)
    assert death is not None, first
    assert int(death[1]) >= 150
    assert len(others) == 2
    assert all(re.search(apart, error) for error in others), others
    assert up.end(signal.SIGINT) == 0
