from __future__ import annotations

import tracemalloc
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import openpyxl
import pytest
from pydantic import ValidationError
from sqlalchemy import text
from support.builtin.sales import Sales, build, rows_of, workbook
from support.builtin.tools import Progress, get, listing, settings
from support.servers.shared import MARIADB_URL, POSTGRES_URL, need

from penstock.producers.storage import FileStorage, make_storage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.wire.codec import decode
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, JobCancelled, Permanent
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.emails.content.templating import Templates
from penstock.workers.builtin.reports.text_files import CsvFile, open_text
from penstock.workers.builtin.reports.workbooks import open_xlsx


@pytest.mark.parametrize("format", ["csv", "xlsx"])
def test_a_report_streams_from_every_database(
    any_sales: Sales, databases: Databases, storage: FileStorage, format: str
):
    any_sales.fill(12_345)
    seen = Progress()
    ctx = Context(job_id=new_id(), sink=seen)
    result = build(ctx, any_sales, databases, storage, format=format)
    assert (result.rows, result.sheets, result.format) == (12_345, 1, format)
    assert seen.said == [(0, 12_345), (5000, 12_345), (10_000, 12_345), (12_345, 12_345)]
    if format == "csv":
        rows = rows_of(get(storage, result.key))
        assert len(rows) == 12_346
        assert rows[0] == ["id", "name", "price", "sold"]
        assert [float(cell) if i == 2 else cell for i, cell in enumerate(rows[12])] == [
            "11",
            "'+49 30 123",
            11.5,
            "2026-01-02",
        ]
    else:
        sheet = workbook(storage, result.key).active
        assert sheet.max_row == 12_346
        assert [cell.value for cell in sheet[12]] == [10, 'say "hi", twice', 10.5, datetime(2026, 1, 1)]


def test_five_times_the_rows_take_no_more_memory(any_sales: Sales, databases: Databases, storage: FileStorage):
    any_sales.fill(15_000)

    def peak(below: int, format: str) -> int:
        tracemalloc.start()
        try:
            parameters = {"day": "2026-01-01", "below": below}
            ctx = Context(job_id=new_id())
            assert build(ctx, any_sales, databases, storage, format=format, parameters=parameters).rows == below
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The sheet is the same for all databases, and the slower part.
    for format in ("csv", "xlsx") if any_sales.url.startswith("sqlite") else ("csv",):
        peak(1000, format)  # cached at first use
        assert peak(15_000, format) < 1.3 * peak(3000, format)


def test_csv_is_rfc_4180_and_cannot_run_formulas(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    result = build(ctx, sales, databases, storage, configured=sales.settings(csv_bom=True))
    content = get(storage, result.key)
    assert content.startswith(b"\xef\xbb\xbfid,name,price,sold\r\n")
    assert b"\r\n1,'=1+1,1.50" in content
    assert b'"say ""hi"", twice"' in content
    assert result.size == len(content)


def test_cells_of_every_type_are_written_as_themselves(tmp_path: Path):
    aware = datetime(2026, 7, 1, 22, 30, tzinfo=UTC)
    values = [
        None,
        True,
        7,
        -1.5,
        Decimal("-2.50"),
        aware,
        date(2026, 2, 3),
        b"\x01\xff",
        {"a": "ä"},
        "-3",
        "\t=x",
        float("nan"),
    ]
    values += [
        10**17,
        Decimal("1234567890123456789.01"),
        date(1850, 1, 1),
        "x" * 40_000,
        "https://x.example",
        Decimal("NaN"),
    ]
    heading = [f"c{i}" for i in range(len(values))]
    with open_text(tmp_path / "a.csv", compressed=False) as file:
        CsvFile(file, heading).write(values)
    _, row = rows_of((tmp_path / "a.csv").read_bytes())
    assert row[:12] == [
        "",
        "true",
        "7",
        "-1.5",
        "-2.50",
        "2026-07-01T22:30:00+00:00",
        "2026-02-03",
        "01ff",
        '{"a": "ä"}',
        "'-3",
        "'\t=x",
        "nan",
    ]
    zone = ZoneInfo("Europe/Berlin")
    with open_xlsx(tmp_path / "a.xlsx", heading, title="A/B: [c]" * 9, created=aware, zone=zone) as book:
        book.write(values)
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").active
    cells = [cell.value for cell in sheet[2]]
    assert len(sheet.title) <= 31
    assert cells[:5] == [None, True, 7, -1.5, -2.5]
    assert cells[5:9] == [datetime(2026, 7, 2, 0, 30), datetime(2026, 2, 3), "01ff", '{"a": "ä"}']
    assert cells[9:12] == ["-3", "\t=x", "nan"]
    assert cells[12:15] == [str(10**17), "1234567890123456789.01", "1850-01-01"]
    assert (len(cells[15]), book.cut_cells) == (32_767, 1)
    assert cells[15].endswith("x… [cut: 40000 characters]")
    assert sheet["Q2"].hyperlink is None
    assert {cell.data_type for cell in sheet[2]} <= {"n", "s", "b", "d"}


def test_a_full_sheet_is_followed_by_another(tmp_path: Path):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with open_xlsx(tmp_path / "a.xlsx", ["n"], title="T", created=at, zone=ZoneInfo("UTC"), max_rows=4) as book:
        for number in range(7):
            book.write([number])
    assert book.sheets == 3
    workbook = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert [[cell.value for cell in sheet["A"]] for sheet in workbook] == [["n", 0, 1, 2], ["n", 3, 4, 5], ["n", 6]]
    assert workbook.sheetnames == ["T", "T 2", "T 3"]


def test_a_report_without_rows_has_its_heading(sales: Sales, databases: Databases, storage: FileStorage, ctx: Context):
    result = build(ctx, sales, databases, storage, parameters={"day": "2030-01-01"}, format="xlsx")
    assert result.rows == 0
    assert [cell.value for cell in workbook(storage, result.key).active[1]] == ["id", "name", "price", "sold"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, r"'day': expected date such as 2026-01-31, got nothing"),
        ({"day": "soon"}, r"'day': expected date"),
        ({"day": True}, r"'day': expected date"),
        ({"day": ["2026-01-01"]}, r"'day': expected date"),
        ({"day": "2026-01-01", "below": "many"}, r"'below': expected int"),
        ({"day": "2026-01-01", "below": 1.5}, r"'below': expected int"),
        ({"day": "2026-01-01", "below": 2**70}, r"'below': expected int"),
        ({"day": "2026-01-01", "limit": 1}, r"no parameter 'limit'; there is: day, below"),
    ],
)
def test_wrong_parameters_are_permanent_and_named(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context, parameters: Any, expected: str
):
    with pytest.raises(Permanent, match=expected):
        build(ctx, sales, databases, storage, parameters=parameters)


def test_a_parameter_cannot_become_sql(sales: Sales, databases: Databases, storage: FileStorage, ctx: Context):
    configured = sales.settings(sql="SELECT id FROM sales WHERE name = :name", parameters={"name": "str"}, columns={})
    name = "x' OR '1'='1"
    assert build(ctx, sales, databases, storage, configured=configured, parameters={"name": name}).rows == 0


def test_an_unknown_report_is_permanent_and_lists_those_there_are(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    with pytest.raises(Permanent, match=r"no report 'weekly' in penstock\.toml; there is: daily_sales"):
        build(ctx, sales, databases, storage, report="weekly")


@pytest.mark.parametrize("name", ["PostgreSQL", "MariaDB"])
def test_sql_that_the_database_does_not_take_is_permanent(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context, name: str
):
    need(name)
    url = {"PostgreSQL": POSTGRES_URL, "MariaDB": MARIADB_URL}[name]
    configured = sales.settings(sql="SELEC nothing", parameters={}, columns={}, database_url=url)
    with pytest.raises(Permanent, match="does not take the report's sql"):
        build(ctx, sales, databases, storage, configured=configured, parameters={})


def test_sql_without_rows_is_permanent_and_changes_nothing(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    configured = sales.settings(sql="DELETE FROM sales", parameters={}, columns={})
    with pytest.raises(Permanent, match=r"its sql writes .*a report may only read"):
        build(ctx, sales, databases, storage, configured=configured, parameters={})
    configured = sales.settings(sql="ROLLBACK", parameters={}, columns={}, count=False)
    with pytest.raises(Permanent, match="returns no rows"):
        build(ctx, sales, databases, storage, configured=configured, parameters={})
    with sales.engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM sales")).scalar() == 20


def test_columns_may_have_the_same_name(sales: Sales, databases: Databases, storage: FileStorage, ctx: Context):
    configured = sales.settings(sql="SELECT id, id FROM sales -- all", parameters={}, columns={}, count=True)
    result = build(ctx, sales, databases, storage, configured=configured, parameters={})
    assert rows_of(get(storage, result.key))[0] == ["id", "id"]


def test_a_second_run_of_a_job_writes_and_asks_nothing(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    first = build(ctx, sales, databases, storage)
    before = listing(storage.folder)
    with sales.engine.begin() as connection:
        connection.execute(text("DELETE FROM sales"))
    assert build(Context(job_id=ctx.job_id, attempt=2), sales, databases, storage) == first
    assert listing(storage.folder) == before
    assert build(Context(job_id=new_id()), sales, databases, storage).rows == 0


def test_the_key_is_made_of_report_parameters_and_job(sales: Sales, databases: Databases, storage: FileStorage):
    ctx, traversal = Context(job_id=new_id()), Context(job_id="../../evil")
    first = build(ctx, sales, databases, storage).key
    second = build(traversal, sales, databases, storage).key
    assert first == f"{first.rpartition('/')[0]}/daily_sales-{ctx.job_id}.csv"
    assert first.rpartition("/")[0] == second.rpartition("/")[0]
    other = build(ctx, sales, databases, storage, parameters={"day": "2026-01-02"}).key
    assert other.rpartition("/")[0] != first.rpartition("/")[0]


def test_yesterday_is_seen_from_when_the_job_was_made(sales: Sales, databases: Databases, storage: FileStorage):
    parameters = {"day": {"type": "date", "default": "yesterday"}, "below": {"type": "int", "default": 1000}}
    late = Context(job_id="a-stock-id", enqueued_at=datetime(2026, 1, 7, 23, 30, tzinfo=UTC))
    for zone, day in (("UTC", "2026-01-06"), ("Europe/Berlin", "2026-01-07")):
        configured = sales.settings(parameters=parameters, timezone=zone)
        result = build(late, sales, databases, storage, configured=configured, parameters={})
        assert result.parameters["day"] == day


def test_a_link_is_mailed_if_asked_for(sales: Sales, databases: Databases, s3_url: str, ctx: Context):
    storage = make_storage(s3_url)
    build(ctx, sales, databases, storage, email_to="boss@example.com", format="xlsx")
    (envelope,) = ctx.outgoing
    mail = decode(envelope).job
    assert isinstance(mail, SendEmail)
    assert mail.to == ("boss@example.com",)
    assert mail.template == "report_ready"
    content = Templates().render(mail.template, mail.variables)
    assert content.subject == "Your report is ready: Daily sales"
    assert "20 rows, XLSX" in (content.text or "")
    assert str(mail.variables["link"]).startswith("http://127.0.0.1")
    assert "X-Amz-Signature" in (content.text or "")
    assert mail.attachments == ()
    storage.close()


@pytest.mark.parametrize("format", ["csv", "xlsx"])
def test_a_cancelled_report_stops_between_rows_and_stores_nothing(
    any_sales: Sales, databases: Databases, storage: FileStorage, format: str
):
    any_sales.fill(12_345)

    class Cancel(Progress):
        def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
            if done >= 5000:
                ctx.cancel()

    ctx = Context(job_id=new_id(), sink=Cancel())
    with pytest.raises(JobCancelled):
        build(ctx, any_sales, databases, storage, format=format)
    assert not storage.folder.exists()
    assert build(Context(job_id=new_id()), any_sales, databases, storage).rows == 12_345


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"sql": "SELECT :day"}, "sql uses :day, which parameters does not declare"),
        ({"sql": "SELECT 1", "parameters": {"day": "date"}}, "'day' is declared, but sql does not use :day"),
        ({"sql": "SELECT :n", "parameters": {"n": {"type": "int", "default": "x"}}}, "expected int"),
        ({"sql": "SELECT :n", "parameters": {"n": "number"}}, "Input should be 'str', 'int'"),
        ({"sql": "SELECT 1", "timezone": "Berlin"}, "unknown time zone"),
    ],
)
def test_a_report_described_wrongly_is_refused_with_the_settings(report: dict[str, Any], expected: str):
    with pytest.raises(ValidationError, match=expected):
        settings(reports={"x": report})


def test_a_cast_in_sql_is_not_a_parameter():
    assert settings(reports={"x": {"sql": "SELECT '1'::int, a FROM b"}}).reports["x"].parameters == {}


def test_names_of_tenants_are_compared_exactly_on_every_database(
    any_sales: Sales, databases: Databases, storage: FileStorage
):
    any_sales.fill(4)
    sql = f"SELECT id FROM {any_sales.table} WHERE name = :tenant"
    configured = any_sales.settings(sql=sql, parameters={}, columns={})
    for tenant, rows in (("=1+1", 1), ("Äpfel", 1), ("äpfel", 0), ("apfel", 0), ("=1+1 ", 0), ("' OR '1'='1", 0)):
        ctx = Context(job_id=new_id(), tenant=tenant)
        assert build(ctx, any_sales, databases, storage, configured, parameters={}).rows == rows
