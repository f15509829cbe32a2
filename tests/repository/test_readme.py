"""The README's code runs as it is written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from support.polling import WAIT_SECONDS, until

from penstock.workers.local.up.redis_server import free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
SHOP, ENQUEUE, TEST = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PENSTOCK = Path(sys.executable).parent / "penstock"


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
        settings = tmp_path / "var/penstock.env"
        until(settings.exists, "the settings", unless=lambda: up.poll() is not None and up.stdout and up.stdout.read())
        script = "source var/penstock.env && python enqueue.py"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert done.stdout == "invoice 7 sent to ada@example.com at attempt 1\n", done.stderr
    finally:
        up.send_signal(signal.SIGINT)
        out = up.communicate(timeout=WAIT_SECONDS)[0].decode()
    assert up.returncode == 0, out


def test_the_readmes_test_passes_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_shop.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_links_of_the_readme_resolve() -> None:
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
