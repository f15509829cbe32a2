"""Bulk statements: one INSERT or UPDATE for each of many rows, at the driver's own speed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.sql.visitors import replacement_traverse

from penstock.ledger.sql.types import UtcDateTime


class Bulk:
    """An INSERT or UPDATE for each of many rows, compiled once, with the conversions that the rows need."""

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self.sql = str(compiled)
        self.order: list[str] | None = compiled.positiontup
        self._constants = {name: value for name, value in compiled.params.items() if name not in columns}
        self.types = {name: compiled.binds[name].type for name in columns}
        # Of the ledger's types only times differ from what drivers take as it is.
        self._times = [name for name, type_ in self.types.items() if isinstance(type_, UtcDateTime)]
        self._time = partial(UtcDateTime().process_bind_param, dialect=dialect)

    def execute(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        return self.run(connection, rows).rowcount

    def run(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> sa.CursorResult[Any]:
        return connection.exec_driver_sql(self.sql, self.bound(rows))

    def bound(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The rows as the driver takes them: lists in the order of the marks, or dicts by their names."""
        if self.order is None:
            named = [{**self._constants, **row} for row in rows]
            for name in self._times:
                for values in named:
                    values[name] = self._time(values[name])
            return named
        whole = [{**self._constants, **row} for row in rows] if self._constants else rows
        order = self.order
        ordered = [[row[name] for name in order] for row in whole]
        for position in [position for position, name in enumerate(order) if name in self._times]:
            before = text = None
            for bound in ordered:
                if (time := bound[position]) is not before:  # a batch's jobs share most of theirs
                    before, text = time, self._time(time)
                bound[position] = text
        return ordered


class JoinedBulk:
    """An INSERT or UPDATE of many rows as one statement that reads them from one JSON text; for PostgreSQL.

    An UPDATE for each row costs it ten times as much as one UPDATE for all.
    """

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        types = Bulk(statement, dialect, columns).types
        objects = sa.cast(sa.bindparam("penstock_rows", type_=sa.Text), sa.JSON)
        typed = [sa.column(name, types[name]) for name in columns]
        rows = sa.func.json_to_recordset(objects).table_valued(*typed).render_derived("penstock_rows", with_types=True)
        if isinstance(statement, sa.Insert):
            select = sa.select(*(rows.c[name] for name in columns))
            joined: Any = statement.from_select(columns, select, include_defaults=False)
        else:
            joined = _with_columns(statement, dict(rows.c))
        self._bulk = Bulk(joined, dialect, ["penstock_rows"])

    def execute(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        return self.run(connection, rows).rowcount

    def run(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> sa.CursorResult[Any]:
        """Execute it, and have what its RETURNING says."""
        return self._bulk.run(connection, [{"penstock_rows": to_json(rows).decode()}])


class GroupedBulk:
    """An INSERT or UPDATE of many rows as statements of dozens of them, for SQLite.

    Its driver releases the interpreter for every statement and then waits to get it back. Next to a busy thread that
    costs more than the statement.
    """

    _SIZES = (64, 16, 4, 1)

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        self._rows = Bulk(statement, dialect, columns)
        if isinstance(statement, sa.Insert):
            before, marks, after = re.split(r"(?<=VALUES )(\([?, ]+\))", self._rows.sql)
            constants: list[Any] = []
        else:  # UPDATE … FROM takes VALUES, too, and names their columns column1, column2, …
            typed = [(f"column{number}", self._rows.types[name]) for number, name in enumerate(columns, 1)]
            values = sa.table("penstock_rows", *(sa.column(*column) for column in typed))
            joined = _with_columns(statement, dict(zip(columns, values.c, strict=True))).compile(dialect=dialect)
            before, after = str(joined).split("FROM penstock_rows")
            before, after = f"{before}FROM (VALUES ", f") AS penstock_rows{after}"
            marks = f"({', '.join('?' * len(columns))})"
            constants = [joined.params[name] for name in joined.positiontup]
            self._rows.order = columns
        self._head, self._tail = constants[: before.count("?")], constants[before.count("?") :]
        self._statements = {size: before + ", ".join([marks] * size) + after for size in self._SIZES}

    def execute(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        bound = self._rows.bound(rows)
        matched = start = 0
        for size, statement in self._statements.items():
            while start + size <= len(bound):
                values = chain.from_iterable(bound[start : start + size])
                matched += connection.exec_driver_sql(statement, (*self._head, *values, *self._tail)).rowcount
                start += size
        return matched


AnyBulk = Bulk | JoinedBulk | GroupedBulk

_BULKS: dict[str, type[AnyBulk]] = {"postgresql": JoinedBulk, "sqlite": GroupedBulk}


def compile_bulk(statement: Any, dialect: sa.Dialect, columns: list[str]) -> AnyBulk:
    """An INSERT or UPDATE of many rows, compiled the way that is fastest on this database."""
    return _BULKS.get(dialect.name, Bulk)(statement, dialect, columns)


def _with_columns(statement: Any, columns: Mapping[str, Any]) -> Any:
    """Replace each parameter of the statement with the column of the same name."""

    def column(element: Any, **_options: Any) -> Any:
        return columns.get(element.key) if isinstance(element, sa.BindParameter) else None

    return replacement_traverse(statement, {}, column)
