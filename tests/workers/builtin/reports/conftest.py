from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.builtin.sales import Sales
from support.servers.shared import MARIADB_URL, POSTGRES_URL, need


@pytest.fixture
def sales(sqlite_url: str) -> Iterator[Sales]:
    sales = Sales(sqlite_url, "sales")
    sales.fill(20)
    yield sales
    sales.drop()


@pytest.fixture(params=["SQLite", "PostgreSQL", "MariaDB"])
def any_sales(request: pytest.FixtureRequest, sqlite_url: str, prefix: str) -> Iterator[Sales]:
    url = {"SQLite": sqlite_url, "PostgreSQL": POSTGRES_URL, "MariaDB": MARIADB_URL}[request.param]
    if request.param != "SQLite":
        need(request.param)
    sales = Sales(url, f"{prefix}_sales")
    yield sales
    sales.drop()
