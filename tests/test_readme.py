"""The README's code runs as it is written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from penstock.workers.local.up.redis_server import free_port

README = (Path(__file__).parent.parent / "README.md").read_text()
SHOP, ENQUEUE, TEST = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PENSTOCK = Path(sys.executable).parent / "penstock"
WAIT = 120.0


PORTS = ("PENSTOCK_FLOWER_PORT", "PENSTOCK_GATEWAY_PORT")


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    path = f"{PENSTOCK.parent}:{os.environ['PATH']}"
    return kept | {"PYTHONPATH": str(folder), "PATH": path, **{name: str(free_port()) for name in PORTS}}


def test_the_ten_lines_run_as_written(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "enqueue.py").write_text(ENQUEUE)
    env = environment(tmp_path)
    up = subprocess.Popen(
        [PENSTOCK, "up", "--import", "shop"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + WAIT
        while not (tmp_path / "var/penstock.env").exists():
            assert up.poll() is None, up.stdout and up.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        script = "source var/penstock.env && python enqueue.py"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT, check=False
        )
        assert done.stdout == "invoice 7 sent to ada@example.com at attempt 1\n", done.stderr
    finally:
        up.send_signal(signal.SIGINT)
        out = up.communicate(timeout=WAIT)[0].decode()
    assert up.returncode == 0, out


def test_the_readmes_test_passes_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_shop.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_every_page_the_readme_leads_to_is_there() -> None:
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
