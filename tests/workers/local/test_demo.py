"""The demo passes here, and its checks are not to be fooled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.reports.handler import build_report
from penstock.workers.builtin.uploads.handler import process_upload
from penstock.workers.handlers.context import Context
from penstock.workers.local.demo import checks
from penstock.workers.local.demo.checks import CheckFailed
from penstock.workers.local.demo.world.customers_api import PAGE, RECORDS, CustomersApi
from penstock.workers.local.demo.world.stage import PDF, PHOTO, Stage, set_stage
from penstock.workers.local.up.guard import alive


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with set_stage(tmp_path_factory.mktemp("demo")) as stage:
        yield stage


def process(stage: Stage, key: str) -> dict[str, Any]:
    result = process_upload(ProcessUpload(key=key), Context(job_id="demo"), stage.storage, stage.settings)
    return result.model_dump(mode="json")


def report(stage: Stage, format: str) -> dict[str, Any]:
    job = BuildReport.model_validate({"report": "orders", "format": format})
    databases = Databases()
    try:
        result = build_report(job, Context(job_id=format), databases, stage.storage, stage.settings)
    finally:
        databases.close()
    return result.model_dump(mode="json")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_whole_demo_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "FLOWER_"))}
    # The caller's own settings do not concern the demo.
    environment = {
        **kept,
        "TMPDIR": str(tmp_path),
        "PENSTOCK_BROKER_URL": "redis://127.0.0.1:1/0",
        "http_proxy": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from penstock.workers.cli import main; main()", "demo"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "every check held" in output
    assert "FAILED" not in output
    assert not list(tmp_path.iterdir())
    pids = [int(pid) for pid in re.findall(r"\(pid (\d+)\)", output)]
    assert len(pids) >= 6
    assert not any(alive(pid) for pid in pids)


def test_the_photo_is_checked_and_a_copy_that_keeps_its_metadata_is_found_out(stage: Stage) -> None:
    result = process(stage, PHOTO)
    assert checks.check_photo(stage, result) == "2 thumbnails, EXIF and GPS gone"
    for key in (result["clean"], result["thumbnails"][0]["key"]):
        path = stage.storage.folder / key
        honest = path.read_bytes()
        with Image.open(path) as picture:
            format = picture.format
            picture.load()
        with_place = Image.Exif()
        with_place[0x0110] = "Some camera"
        picture.save(path, format, exif=with_place)
        with pytest.raises(CheckFailed, match=r"Exif|EXIF"):
            checks.check_photo(stage, result)
        Image.new("RGB", picture.size).save(path, format)
        with pytest.raises(CheckFailed, match="not upright"):
            checks.check_photo(stage, result)
        path.write_bytes(honest)
    checks.check_photo(stage, result)


def test_the_pdf_is_checked_and_a_changed_original_is_found_out(stage: Stage) -> None:
    result = process(stage, PDF)
    assert checks.check_pdf(stage, result) == f"{len(stage.uploads[PDF])} bytes, SHA-256 correct"
    path = stage.storage.folder / result["original"]
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(CheckFailed, match="the original was changed"):
        checks.check_pdf(stage, result)


def test_a_csv_that_lacks_a_row_is_found_out(stage: Stage) -> None:
    result = report(stage, "csv")
    assert checks.check_csv(stage, result) == "50,000 rows"
    path = stage.storage.folder / result["key"]
    path.write_bytes(path.read_bytes().rstrip().rpartition(b"\n")[0])
    with pytest.raises(CheckFailed, match="49,999 rows"):
        checks.check_csv(stage, result)


def test_a_workbook_is_read_to_its_last_row(stage: Stage) -> None:
    result = report(stage, "xlsx")
    assert checks.check_xlsx(stage, result) == "50,000 rows"
    with pytest.raises(CheckFailed, match="the result names 49,999"):
        checks.check_xlsx(stage, {**result, "rows": 49_999})


def test_the_api_pages_through_all_records_refuses_some_requests_and_knows_what_changed() -> None:
    api = CustomersApi()
    api.start()
    try:
        statuses, records = [], []
        cursor: int | None = 0
        while cursor is not None:
            status, headers, document = api.answer({"limit": str(PAGE), "cursor": str(cursor)})
            statuses.append(status)
            if status == 200:
                records += document["items"]
                cursor = document["next_cursor"]
            elif status == 429:
                assert headers["Retry-After"] == "1"
        assert sorted(record["id"] for record in records) == list(range(1, RECORDS + 1))
        assert {429, 503} <= set(statuses)

        last = max(record["updated_at"] for record in records)
        changed = api.change(37)
        with urllib.request.urlopen(f"{api.url}?updated_since={last}", timeout=10) as answer:
            document = json.load(answer)
        assert {record["id"] for record in document["items"]} == changed
        assert document["next_cursor"] is None
    finally:
        api.stop()


def test_the_callers_settings_are_back_after_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "redis://elsewhere:1/0")
    with tempfile.TemporaryDirectory() as folder, set_stage(Path(folder)) as stage:
        assert "PENSTOCK_BROKER_URL" not in os.environ
        assert "@127.0.0.1:" in stage.settings.broker_url
    assert os.environ["PENSTOCK_BROKER_URL"] == "redis://elsewhere:1/0"
