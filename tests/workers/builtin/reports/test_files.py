"""The files of reports in each format, and the folders in which they are made."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import openpyxl
import pytest
from pydantic import ValidationError
from support.builtin.sales import Sales, build, rows_of
from support.builtin.tools import get
from support.polling import until

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.reports.text_files import JsonLines, open_text
from penstock.workers.builtin.reports.workbooks import MAX_CELL, open_xlsx
from penstock.workers.builtin.scratch import scratch_folder

HOLD = """
import sys, time
from penstock.workers.builtin.scratch import scratch_folder
with scratch_folder("penstock-test") as folder:
    (folder / "part").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_lines_of_json_keep_types_and_digits(tmp_path: Path):
    heading = ["id", "id", "price", "doc", "at", "raw", "nan", "none", "text"]
    row = [7, True, Decimal("1234567890123456789.10"), {"a": [date(2026, 1, 2)]}, datetime(2026, 1, 1, tzinfo=UTC)]
    with open_text(tmp_path / "a", compressed=False) as file:
        JsonLines(file, heading).write([*row, b"\xff", float("nan"), None, 'Ä "\n'])
    line = (tmp_path / "a").read_text()
    assert line.count("\n") == 1
    assert json.loads(line, parse_float=Decimal) == {
        "id": 7,
        "id_2": True,
        "price": Decimal("1234567890123456789.10"),
        "doc": {"a": ["2026-01-02"]},
        "at": "2026-01-01T00:00:00+00:00",
        "raw": "ff",
        "nan": "nan",
        "none": None,
        "text": 'Ä "\n',
    }


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_report_may_be_compressed(sales: Sales, databases: Databases, storage: FileStorage, format: str):
    plain = build(Context(job_id=new_id()), sales, databases, storage, format=format)
    packed = build(Context(job_id=new_id()), sales, databases, storage, format=format, gzip=True)
    assert packed.key.endswith(f".{format}.gz")
    content = get(storage, packed.key)
    assert gzip.decompress(content) == get(storage, plain.key)
    assert packed.size == len(content)
    with pytest.raises(ValidationError, match="gzip is for csv and jsonl"):
        BuildReport(report="daily_sales", format="xlsx", gzip=True)


def test_a_report_may_keep_text_that_looks_like_a_formula(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    result = build(ctx, sales, databases, storage, configured=sales.settings(csv_formulas=True))
    names = [row[1] for row in rows_of(get(storage, result.key))]
    assert names[2] == "=1+1"
    assert names[4] == "+49 30 123"


def test_a_text_that_is_too_long_for_a_cell_is_cut_with_a_note(tmp_path: Path):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    texts = ["x" * MAX_CELL, "x" * (MAX_CELL + 1), "😀" * (MAX_CELL // 2), "😀" * (MAX_CELL // 2 + 1)]
    with open_xlsx(tmp_path / "a.xlsx", ["t"], title="T", created=at, zone=ZoneInfo("UTC")) as book:
        for value in texts:
            book.write([value])
    assert book.cut_cells == 2
    cells = [cell.value for cell in openpyxl.load_workbook(tmp_path / "a.xlsx").active["A"]][1:]
    assert [cells[0], cells[2]] == [texts[0], texts[2]]
    assert cells[1].endswith("x… [cut: 32768 characters]")
    assert cells[3].endswith("😀… [cut: 16384 characters]")
    assert all(len(cell.encode("utf-16-le")) <= 2 * MAX_CELL for cell in cells)


def test_the_result_says_how_many_cells_are_cut(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context, caplog: pytest.LogCaptureFixture
):
    configured = sales.settings(sql="SELECT printf('%.40000c', 'x') AS t", parameters={}, columns={})
    assert build(ctx, sales, databases, storage, configured, parameters={}, format="xlsx").cut_cells == 1
    assert "1 cells are cut" in caplog.text


def test_the_folder_of_a_killed_worker_is_deleted_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout is not None]
    try:
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        unlocked, fresh = tmp_path / "penstock-test-new-1", tmp_path / "penstock-test-new-2"
        unlocked.mkdir()
        fresh.mkdir()
        os.utime(unlocked, (0, 0))
        with scratch_folder("penstock-test") as own:
            assert own.is_dir()
            assert not unlocked.exists()
            assert fresh.exists()
            until(lambda: not folders[0].exists(), "the dead one's folder")
            assert (folders[1] / "part").exists()
        assert not own.exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
