"""Secrets of `penstock up`: in files of their owner's, in no argument, and asked for by its Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from support.polling import until
from workers.local.test_up import EXAMPLE, PENSTOCK, Start, Up, sourced
from workers.local.test_up import start as start  # a fixture

SECRETS = ("redis.password", "flower.password", "token.secret", "gateway.key")


def secret(up: Up, name: str) -> str:
    return (up.folder / name).read_text().strip()


def open_to_others(folder: Path) -> list[str]:
    """Files and folders whose mode is not 0600 or 0700."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    right = {path: 0o700 if path.is_dir() else 0o600 for path in paths}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    return [f"{path} {mode:o}" for path, mode in modes.items() if mode != right[path]]


def command_lines(up: Up) -> str:
    """The arguments of `penstock up` and of all processes that come from it."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
    family = {up.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return "\n".join(lines.get(pid, "") for pid in family)


def send_one(up: Up, number: int) -> None:
    words = ["enqueue", "invoice.write", json.dumps({"number": number, "customer": "Ada"}), "--import", "acme.handlers"]
    environment = sourced(up)
    subprocess.run([*PENSTOCK, *words, "--wait"], cwd=EXAMPLE, env=environment, check=True, capture_output=True)


@pytest.fixture
def umask_000() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_000")
def test_everything_is_for_its_owner_alone_also_what_was_there_before(start: Start, tmp_path: Path) -> None:
    var = tmp_path / "var"
    (var / "log").mkdir(parents=True)
    (var / "penstock.env").write_text("export PENSTOCK_BROKER_URL=redis://127.0.0.1:20001/0\n")
    (var / "log" / "redis.log").write_text("of a former time\n")
    assert open_to_others(var)

    up = start("--import", "acme.handlers", cwd=EXAMPLE)
    up.wait_ready()
    assert re.search(r"\d files and folders in .* were open to others; now they are for their owner alone", up.text)
    send_one(up, 7)
    until(lambda: not open_to_others(var), "the modes")
    assert {"penstock.db", "redis", "storage", *SECRETS} <= {path.name for path in var.iterdir()}
    assert up.end(signal.SIGINT) == 0
    assert not open_to_others(var)
    assert not (var / "flower").exists(), "the console keeps nothing"

    again = start("--import", "acme.handlers", cwd=EXAMPLE)
    again.wait_ready()
    assert "open to others" not in again.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_redis_asks_for_a_password_that_no_argument_and_no_log_shows(start: Start) -> None:
    up = start("--import", "acme.handlers", cwd=EXAMPLE)
    up.wait_ready()
    url = sourced(up)["PENSTOCK_BROKER_URL"]
    password = secret(up, "redis.password")
    assert f":{password}@127.0.0.1:" in url
    port = int(re.findall(r":(\d+)/0", url)[0])
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(port=port, password="guess") as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(url) as client:
        assert client.ping()
        assert client.config_get("bind") == {b"bind": b"127.0.0.1"} or client.config_get("bind") == {
            "bind": "127.0.0.1"
        }
    send_one(up, 9)

    arguments = command_lines(up)
    assert "redis-server" in arguments
    assert "guard.py" in arguments
    for name in SECRETS:
        assert secret(up, name) not in arguments, name
    logs = "".join(path.read_text(errors="replace") for path in (up.folder / "log").iterdir())
    for name in SECRETS:
        assert secret(up, name) not in logs, name
    assert password not in up.text
    assert re.search(r"broker +redis://:\*\*\*@127\.0\.0\.1:\d+/0 +with the password in .*penstock\.env", up.text)
