"""An erased person is gone from Flower, its history, the ledger's files and the broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from engine_jobs import Note, Sleep
from running import Running
from served import flower
from support.polling import until

from penstock.ledger.retention.erasure import erase
from penstock.producers.storage import make_storage
from penstock.workers.local.up.redis_server import free_port

MARKER = "ada-lovelace-7"
OTHER = "charles-babbage-8"


def files_with(folder: Path, text: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def keys_with(url: str, text: str) -> list[bytes]:
    client: Any = redis.Redis.from_url(url)
    keys = [key for key in client.scan_iter() if text.encode() in key + (client.dump(key) or b"")]
    client.close()
    return keys


def erase_person(worker: Running) -> None:
    storage = make_storage(f"file:{worker.folder}/storage")
    done = erase(worker.database, {"key": MARKER}, lambda: storage, actor="bob")
    assert not done.running
    assert done.log_emptied


def enqueue(worker: Running, name: str, count: int = 1) -> list[str]:
    jobs = [worker.producer.enqueue(Note(text=f"{name} {number}"), key=name) for number in range(count)]
    assert all(name in job.result(timeout=60) for job in jobs)
    return [job.id for job in jobs]


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_an_erased_person_is_nowhere(engine: str, start_worker: Callable[..., Running], tmp_path: Path) -> None:
    worker = start_worker(engine)
    with flower(worker, tmp_path, free_port(), imports=["engine_jobs"]) as served:
        until(lambda: worker.name in served.get("api/workers"), "the worker in Flower")
        erased, others = enqueue(worker, MARKER, 20), enqueue(worker, OTHER, 3)
        assert MARKER in str(served.get(f"api/task/info/{erased[0]}")), "before, Flower shows the person"
        erase_person(worker)
        assert MARKER not in str(served.get(f"api/task/info/{erased[0]}"))
        assert MARKER not in str(served.tasks())
        assert OTHER in str(served.get(f"api/task/info/{others[0]}"))
        assert keys_with(worker.settings.broker_url, MARKER) == []
        assert files_with(tmp_path, MARKER) == []
    assert files_with(tmp_path, OTHER), "a search that finds what is there"


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_job_that_ran_while_someone_looked_is_forgotten_with_the_list(
    engine: str, start_worker: Callable[..., Running], tmp_path: Path
) -> None:
    worker = start_worker(engine)
    with flower(worker, tmp_path, free_port()) as served:
        until(lambda: worker.name in served.get("api/workers"), "the worker in Flower")
        runs = worker.producer.enqueue(Sleep(seconds=300, note=MARKER), key=MARKER)
        until(lambda: runs.id in worker.active(), "the running job")
        page = until(lambda: MARKER in str(served.get(f"worker/{worker.name}")), "the job on the worker's page")
        assert page
        assert MARKER in str(served.get(f"api/workers?workername={worker.name}"))
        worker.ask("revoke", task_id=runs.id, terminate=True)
        until(lambda: runs.status().final, "its end")
        until(lambda: MARKER not in str(served.get("api/workers")), "Flower to forget")


def test_files_of_older_versions_are_deleted_at_the_start(start_worker: Callable[..., Running], tmp_path: Path) -> None:
    worker = start_worker("celery")
    folder = tmp_path / "var" / "flower"
    folder.mkdir(parents=True)
    for name in ("history", "history.db", "history.dat", "history.corrupt", "history.tmp.db"):
        (folder / name).write_text(MARKER)
    (folder / "notes").write_text("not Flower's")
    with flower(worker, tmp_path, free_port()):
        assert files_with(tmp_path / "var", MARKER) == []
        assert [file.name for file in folder.iterdir()] == ["notes"]


def test_events_of_jobs_never_reach_the_console(start_worker: Callable[..., Running], tmp_path: Path) -> None:
    worker = start_worker("celery")
    with flower(worker, tmp_path, free_port()) as served:
        until(lambda: worker.name in served.get("api/workers"), "the worker in Flower")
        worker.ask("enable_events")
        enqueue(worker, OTHER, 3)
        online = f'flower_worker_online{{worker="{worker.name}"}} 1.0'
        until(lambda: online in served.get("metrics"), "events of workers")
        assert 'type="task-' not in served.get("metrics")
