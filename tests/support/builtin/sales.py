"""A table of sales, and reports about it."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from typing import Any

import openpyxl
from sqlalchemy import create_engine, text

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.reports import BuildReport
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.reports.handler import build_report
from support.builtin.tools import get, settings

SALES = {
    "sql": "SELECT id, name, price, sold FROM {table} WHERE sold >= :day AND id < :below ORDER BY id;",
    "parameters": {"day": "date", "below": {"type": "int", "default": 1_000_000}},
    "columns": {"price": "decimal", "sold": "date"},
    "title": "Daily sales",
}


class Sales:
    """A database with a table of sales."""

    def __init__(self, url: str, table: str) -> None:
        self.url, self.table = url, table
        self.engine = create_engine(url)

    def fill(self, rows: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    f"CREATE TABLE {self.table} "
                    "(id INTEGER PRIMARY KEY, name VARCHAR(80), price NUMERIC(10,2), sold DATE)"
                )
            )
            names = ["Äpfel", "=1+1", 'say "hi", twice', "+49 30 123"]
            values = [
                {"i": i, "n": names[i % 4], "p": f"{i}.50", "s": str(date(2026, 1, 1) + timedelta(days=i % 10))}
                for i in range(rows)
            ]
            connection.execute(text(f"INSERT INTO {self.table} VALUES (:i, :n, :p, :s)"), values)

    def drop(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(f"DROP TABLE IF EXISTS {self.table}"))
        self.engine.dispose()

    def settings(self, **report: Any) -> Any:
        described = {**SALES, "sql": SALES["sql"].format(table=self.table), **report}
        return settings(database_url=self.url, reports={"daily_sales": described})


def build(ctx: Context, sales: Sales, databases: Databases, storage: Any, configured: Any = None, **job: Any) -> Any:
    job = {"report": "daily_sales", "parameters": {"day": "2026-01-01"}, **job}
    return build_report(BuildReport(**job), ctx, databases, storage, configured or sales.settings())


def rows_of(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def workbook(storage: FileStorage, key: str) -> Any:
    return openpyxl.load_workbook(io.BytesIO(get(storage, key)))
