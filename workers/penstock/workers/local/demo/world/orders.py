"""The demo's order database: 50,000 rows in SQLite, the same each time."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

ROWS = 50_000
_PRODUCTS = ("Pelton wheel", "Guide vane", "Spiral casing", "Draft tube", "Runner", "Governor", "Penstock, DN 800")
_TOWNS = ("Bergen", "Łódź", "Zürich", "Málaga", "Graz", "Örebro", "Brno", "Genève")
_FIRST_DAY = date(2026, 1, 1)


def make_orders(path: Path, rows: int = ROWS) -> int:
    """Write the database and return the sum of all amounts, in cents."""
    chance = random.Random(20260517)
    orders = []
    for number in range(1, rows + 1):
        day = _FIRST_DAY + timedelta(days=chance.randrange(120))
        quantity, price = chance.randint(1, 12), chance.randint(1_50, 999_99)
        orders.append(
            (number, day.isoformat(), chance.choice(_TOWNS), chance.choice(_PRODUCTS), quantity, quantity * price)
        )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, ordered_on TEXT NOT NULL, town TEXT NOT NULL, "
            "product TEXT NOT NULL, quantity INTEGER NOT NULL, cents INTEGER NOT NULL)"
        )
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", orders)
    return sum(order[-1] for order in orders)
