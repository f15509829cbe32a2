"""Prints how long a report of a table takes, in seconds, and the peak memory of the process, in MiB.

python -m benchmarks.programs.builtin.report URL TABLE FOLDER csv|xlsx|jsonl|bare

`bare` is a loop over a cursor of the server that writes CSV, without anything of ours.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

from benchmarks.programs.builtin import peak_mebibytes

SQL = "SELECT id, name, price, sold, note FROM {table} ORDER BY id"
_BATCH = 2000


def main() -> None:
    url, table, folder, form = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    build = _bare if form == "bare" else _ours
    begin = time.perf_counter()
    build(url, SQL.format(table=table), folder, form)
    seconds = time.perf_counter() - begin
    print(seconds, peak_mebibytes())


def _ours(url: str, sql: str, folder: Path, form: str) -> None:
    from penstock.config.settings import Settings
    from penstock.producers.storage import FileStorage
    from penstock.schemas.builtin.reports import BuildReport
    from penstock.schemas.wire.ids import new_id
    from penstock.workers import Context
    from penstock.workers.builtin.databases import Databases
    from penstock.workers.builtin.reports.handler import build_report

    settings = Settings.model_validate({"database_url": url, "reports": {"all": {"sql": sql, "count": False}}})
    job = BuildReport.model_validate({"report": "all", "format": form})
    databases = Databases()
    build_report(job, Context(job_id=new_id()), databases, FileStorage(folder), settings)
    databases.close()


def _bare(url: str, sql: str, folder: Path, _form: str) -> None:
    import psycopg

    plain = url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain) as connection, (folder / "bare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        with connection.cursor("bare") as cursor:
            cursor.itersize = _BATCH
            cursor.execute(sql)  # type: ignore[call-overload,unused-ignore]
            writer.writerows(cursor)


if __name__ == "__main__":
    main()
