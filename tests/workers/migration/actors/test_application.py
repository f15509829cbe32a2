"""Applications of Dramatiq's that cannot be adopted as they are, and what differs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from adopted_shop import EXAMPLE
from support.polling import WAIT_SECONDS
from support.servers.forked import importer

PENSTOCK = Path(sys.executable).parent / "penstock"

CASES = {
    "no_such_thing": ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'", 2),
    "no_actors": ("import dramatiq\n", "declares no actor", 2),
    "stub": (
        "import dramatiq\nfrom dramatiq.brokers.stub import StubBroker\ndramatiq.set_broker(StubBroker())\n"
        "@dramatiq.actor\ndef act(): ...\n",
        "the application's broker is a StubBroker",
        2,
    ),
    "pickled": (
        "import dramatiq\nfrom dramatiq.brokers.redis import RedisBroker\ndramatiq.set_broker(RedisBroker())\n"
        "dramatiq.set_encoder(dramatiq.PickleEncoder())\n@dramatiq.actor\ndef act(): ...\n",
        "the application's encoder PickleEncoder does not write JSON",
        2,
    ),
    "another_broker": (
        "import dramatiq\nfrom dramatiq.brokers.redis import RedisBroker\ndramatiq.set_broker(RedisBroker())\n"
        "@dramatiq.actor\ndef act(): ...\n@dramatiq.actor(broker=RedisBroker())\ndef other(): ...\n",
        "actor another_broker.other is declared on another broker than Dramatiq's global one",
        2,
    ),
    "a_job_too": (
        "import dramatiq\nfrom dramatiq.brokers.redis import RedisBroker\nfrom penstock.schemas import Job\n"
        "dramatiq.set_broker(RedisBroker())\n@dramatiq.actor\ndef act(): ...\nclass Act(Job, kind='act'): ...\n",
        "kind 'act' of a_job_too.act is already taken by a_job_too.Act",
        1,
    ),
}


def run(folder: Path, *command: str) -> tuple[int, str]:
    """The exit code of a worker, and what it wrote, in one line."""
    env = os.environ | {"PENSTOCK_DATABASE_URL": f"sqlite:///{folder}/ledger.db", "PYTHONPATH": str(EXAMPLE)}
    output = folder / "output"
    modules = importer("penstock.workers.cli", "penstock.workers.engines.dramatiq.worker")
    with output.open("wb") as log:
        process = modules.start(
            "penstock.__main__:main", PENSTOCK, "worker", *command, environment=env, folder=folder, log=log
        )
    return process.wait(WAIT_SECONDS), " ".join(output.read_text().split())


@pytest.mark.parametrize("module", CASES)
def test_an_application_that_cannot_run_is_refused(module: str, tmp_path: Path) -> None:
    text, message, expected = CASES[module]
    (tmp_path / f"{module}.py").write_text(text)
    code, output = run(tmp_path, "--dramatiq", module)
    assert code == expected
    assert message in output


def test_only_dramatiqs_engine_runs_actors(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--engine", "celery", "--dramatiq", "shop.actors")
    assert code == 2
    assert "--dramatiq runs on Dramatiq's engine, not on 'celery'" in output
