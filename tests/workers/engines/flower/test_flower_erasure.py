"""An erased person is gone from Flower, its history, the ledger's files and the broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from engine_jobs import Aside, Note
from running import Running
from served import Flower, flower
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


def shows(served: Flower, job_ids: list[str]) -> bool:
    return set(job_ids) <= served.tasks().keys()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_an_erased_person_is_nowhere(engine: str, start_worker: Callable[..., Running], tmp_path: Path) -> None:
    worker = start_worker(engine)
    port = free_port()
    with flower(worker, tmp_path, port) as served:
        until(lambda: worker.name in (served.get("api/workers?refresh=1") or {}), "the worker in Flower")
        erased, others = enqueue(worker, MARKER, 20), enqueue(worker, OTHER, 3)
        until(lambda: shows(served, [*erased, *others]), "the jobs")
    assert files_with(tmp_path / "var", MARKER), "the history has the person"

    with flower(worker, tmp_path, port) as served:
        assert shows(served, erased), "and so has Flower"
        erase_person(worker)
        until(lambda: not shows(served, erased[:1]), "Flower to forget")
        assert MARKER not in str(served.tasks())
        assert served.get(f"api/task/info/{erased[0]}") == 404
        until(lambda: not files_with(tmp_path, MARKER), "the files without the person")
        assert keys_with(worker.settings.broker_url, MARKER) == []
        assert shows(served, others)
    assert files_with(tmp_path, MARKER) == []
    assert files_with(tmp_path, OTHER), "a search that finds what is there"


def test_a_flower_that_was_stopped_forgets_when_it_starts(start_worker: Callable[..., Running], tmp_path: Path) -> None:
    worker = start_worker("celery")
    port = free_port()
    with flower(worker, tmp_path, port) as served:
        until(lambda: worker.name in (served.get("api/workers?refresh=1") or {}), "the worker in Flower")
        erased, others = enqueue(worker, MARKER), enqueue(worker, OTHER)
        until(lambda: shows(served, [*erased, *others]), "the jobs")
    (tmp_path / "var" / "flower" / "history.corrupt").write_text(MARKER)
    erase_person(worker)
    with flower(worker, tmp_path, port) as served:
        until(lambda: not files_with(tmp_path, MARKER), "the files without the person")
        assert not shows(served, erased)
        assert shows(served, others)


def test_a_message_that_comes_after_the_erasure_is_forgotten_too(
    start_worker: Callable[..., Running], tmp_path: Path
) -> None:
    worker = start_worker("celery")
    with flower(worker, tmp_path, free_port()) as served:
        until(lambda: worker.name in (served.get("api/workers?refresh=1") or {}), "the worker in Flower")
        waits = worker.producer.enqueue(Aside(note=MARKER), key=MARKER)
        waits.cancel()
        erase_person(worker)
        worker.ask("add_consumer", queue="engines-2")
        until(lambda: keys_with(worker.settings.broker_url, MARKER) == [], "the broker without the person")
        other = enqueue(worker, OTHER)
        until(lambda: shows(served, other), "events")
        until(lambda: MARKER not in str(served.tasks()), "Flower to forget")
        until(lambda: not files_with(tmp_path, MARKER), "the files without the person")
