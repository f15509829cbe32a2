"""The decoder's process: its caps, its end, and what is left behind."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image
from support.builtin.tools import put, settings
from support.polling import until

from penstock.config.errors import StorageError
from penstock.producers.storage import FileStorage, make_storage
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, JobCancelled, Permanent
from penstock.workers.builtin.scratch import scratch_folder
from penstock.workers.builtin.uploads.decoding import DecoderFailed
from penstock.workers.builtin.uploads.handler import process_upload


def noise(size: tuple[int, int], format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(7).randbytes(size[0] * size[1] * 3)).save(out, format)
    return out.getvalue()


SLOW = {"variants": {"slow": {"width": 1500, "format": "avif", "quality": 95}}}
"""Takes a second or more of processor time on an image of noise."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def decoders() -> list[int]:
    """Pids of the decoders that this process has started."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [pid for pid in pids if b"decoder.main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_an_image_that_needs_more_memory_than_allowed_is_refused(storage: FileStorage, ctx: Context):
    out = io.BytesIO()
    Image.new("RGB", (6000, 5000)).save(out, "PNG")
    put(storage, "large", out.getvalue())
    with pytest.raises(Permanent, match="more than 67108864 bytes of memory to decode; decoder_memory"):
        process_upload(ProcessUpload(key="large"), ctx, storage, settings(uploads={"decoder_memory": "64MiB"}))


def test_an_image_that_needs_more_time_than_allowed_is_refused(storage: FileStorage, ctx: Context):
    put(storage, "slow", noise((1500, 1500)))
    uploads = {"decoder_seconds": 1, "variants": {f"v{n}": SLOW["variants"]["slow"] for n in range(3)}}
    with pytest.raises(Permanent, match="more than 1 s of processor time to decode; decoder_seconds"):
        process_upload(ProcessUpload(key="slow"), ctx, storage, settings(uploads=uploads))


def test_a_decoder_has_no_secrets_and_its_death_from_outside_is_worth_another_try(
    storage: FileStorage, temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    put(storage, "slow", noise((1500, 1500)))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            process_upload,
            ProcessUpload(key="slow"),
            Context(job_id=new_id()),
            storage,
            settings(uploads={"variants": {f"v{n}": SLOW["variants"]["slow"] for n in range(9)}}),
        )
        (pid,) = until(decoders, "a decoder")
        assert b"very-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DecoderFailed, match="SIGKILL"):
            job.result(60)
    assert list(temporary.iterdir()) == []


def test_a_cancelled_job_ends_its_decoder(storage: FileStorage, temporary: Path):
    put(storage, "slow", noise((1500, 1500)))
    context = Context(job_id=new_id())
    uploads = {"variants": {f"v{n}": SLOW["variants"]["slow"] for n in range(9)}}
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(process_upload, ProcessUpload(key="slow"), context, storage, settings(uploads=uploads))
        until(decoders, "a decoder")
        context.cancel()
        with pytest.raises(JobCancelled):
            job.result(60)
    assert decoders() == []
    assert list(temporary.iterdir()) == []


WORKER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from penstock.workers.builtin.scratch import scratch_folder
with scratch_folder("penstock-upload") as folder:
    (folder / "upload").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_the_folder_of_a_killed_worker_is_removed_and_that_of_a_live_one_is_not(temporary: Path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        assert len(list(temporary.iterdir())) == 2
        workers[0].kill()
        workers[0].wait()
        (temporary / "penstock-upload-file").touch()
        (temporary / "another").mkdir()
        with scratch_folder("penstock-upload") as folder:
            left = {path.name for path in temporary.iterdir()}
        assert len(left) == 4, left
        assert not folder.exists()
        alive = [path for path in temporary.iterdir() if (path / "upload").exists()]
        assert len(alive) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_a_decoder_dies_with_its_worker(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from penstock.config.settings import Settings\n"
        "from penstock.producers.storage import FileStorage; from penstock.workers import Context\n"
        "from penstock.schemas.builtin.uploads import ProcessUpload\n"
        "from penstock.workers.builtin.uploads.handler import process_upload\n"
        "from penstock.schemas.wire.ids import new_id\n"
        "variant = {'width': 1500, 'format': 'avif', 'quality': 95}\n"
        "uploads = {'variants': {f'v{n}': variant for n in range(9)}}\n"
        "process_upload(ProcessUpload(key='slow'), Context(job_id=new_id()), FileStorage(Path(sys.argv[1])),\n"
        "    Settings(uploads=uploads))\n"
    )
    put(FileStorage(tmp_path), "slow", noise((1500, 1500)))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment)
    try:

        def children() -> list[int]:
            paths = Path(f"/proc/{worker.pid}/task").glob("*/children")
            pids = [int(pid) for path in paths for pid in path.read_text().split()]
            # Its memory is capped once it has asked to die with its worker.
            return [pid for pid in pids if "unlimited" not in _address_space(pid)]

        (pid,) = until(children, "a decoder with caps")
        worker.kill()
        worker.wait()
        until(lambda: not Path(f"/proc/{pid}").exists() or _state(pid) == "Z", "the decoder's end")
    finally:
        worker.kill()
        worker.wait()


def _address_space(pid: int) -> str:
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return "unlimited"
    return next(line for line in lines if line.startswith("Max address space")).split("space")[1].split("bytes")[0]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_an_outage_is_retried_for_days_and_a_bad_upload_not_at_all(ctx: Context):
    policy = ProcessUpload.kind().retry
    for error in (StorageError, ConnectionRefusedError):
        assert policy.exhausted_reason(error, 100, timedelta(days=2)) is None
        assert policy.exhausted_reason(error, 100, timedelta(days=4)) is not None
    assert policy.exhausted_reason(RuntimeError, 8, timedelta(hours=1)) is not None


def test_a_storage_that_cannot_be_reached_is_an_outage(ctx: Context, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    storage = make_storage("s3://bucket?endpoint_url=http://127.0.0.1:9&region=us-east-1")
    with pytest.raises(StorageError, match="in/file"):
        process_upload(ProcessUpload(key="in/file"), ctx, storage, settings())
    storage.close()
