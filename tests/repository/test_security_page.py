"""docs/security.md names tests that exist, each requirement once, and the checks of `penstock doctor --production`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from penstock.config.settings import Settings
from penstock.workers.cli.doctor.production import review
from penstock.workers.cli.doctor.production.machine import Machine

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
ASVS = PAGE.partition("## The gateway and ASVS level 2")[2]
COUNTS = {
    "1.1": 2,
    "1.2": 9,
    "1.3": 11,
    "1.4": 3,
    "1.5": 2,
    "2.1": 3,
    "2.2": 3,
    "2.3": 4,
    "2.4": 1,
    "3.2": 2,
    "3.3": 4,
    "3.4": 6,
    "3.5": 5,
    "3.7": 2,
    "4.1": 3,
    "4.2": 1,
    "4.3": 2,
    "4.4": 4,
    "5.1": 1,
    "5.2": 3,
    "5.3": 2,
    "5.4": 3,
    "6.1": 3,
    "6.2": 12,
    "6.3": 4,
    "6.4": 4,
    "6.5": 5,
    "6.6": 3,
    "6.8": 4,
    "7.1": 3,
    "7.2": 4,
    "7.3": 2,
    "7.4": 5,
    "7.5": 2,
    "7.6": 2,
    "8.1": 2,
    "8.2": 3,
    "8.3": 1,
    "8.4": 1,
    "9.1": 3,
    "9.2": 4,
    "10.1": 2,
    "10.2": 2,
    "10.3": 4,
    "10.4": 11,
    "10.5": 5,
    "10.6": 2,
    "10.7": 3,
    "11.1": 2,
    "11.2": 3,
    "11.3": 3,
    "11.4": 4,
    "11.5": 1,
    "11.6": 1,
    "12.1": 3,
    "12.2": 2,
    "12.3": 4,
    "13.1": 1,
    "13.2": 5,
    "13.3": 2,
    "13.4": 5,
    "14.1": 2,
    "14.2": 4,
    "14.3": 3,
    "15.1": 3,
    "15.2": 3,
    "15.3": 7,
    "16.1": 1,
    "16.2": 5,
    "16.3": 4,
    "16.4": 3,
    "16.5": 3,
}
"""Section of ASVS 5.0.0 → its requirements of level 1 and 2, which are its first ones. Chapter 17 is apart."""


def requirements() -> list[str]:
    """Every requirement of level 1 and 2, in order, but those of chapter 17."""
    return [f"{section}.{number}" for section, count in COUNTS.items() for number in range(1, count + 1)]


def listed(text: str) -> Iterator[str]:
    """Requirements of the first column, with those between `7.1.1–7.2.1`."""
    every = requirements()
    for cell in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE):
        for item in re.findall(r"(\d+\.\d+\.\d+)(?:–(\d+\.\d+\.\d+))?", cell):
            first, last = item[0], item[1] or item[0]
            yield from every[every.index(first) : every.index(last) + 1]


def test_each_requirement_of_level_2_is_listed_once() -> None:
    counted = Counter(listed(ASVS))
    assert [name for name in requirements() if counted[name] != 1] == []
    assert "| 17 |" in ASVS


def test_tests_that_the_page_names_exist() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert sorted(set(re.findall(r"`(test_\w+)`", PAGE)) - defined) == []


def test_checks_that_the_list_names_are_those_of_the_doctor() -> None:
    _, _, section = PAGE.partition("## For production")
    rows = re.findall(r"^\| .+ \| (.+) \|$", section.partition("## Kept so")[0], re.MULTILINE)
    named = {name.removesuffix(" …") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    settings = Settings(
        database_url="sqlite:///:memory:",
        hooks={"shop": {"secret": "x"}},  # type: ignore[dict-item]
    )
    checks = {
        re.sub(r" of (?!penstock).*", " of", finding.check).removeprefix("gateway: ")
        for finding in review(settings, Machine(1, 0o077))
    }
    apart = {"HSTS", "metrics", "remote control", "mode of penstock.toml", "storage: hosts", "delivery of"}
    """Only where there is an address, a setting, a file or several machines."""
    assert {name.removeprefix("gateway: ") for name in named} - apart - checks == set()
    assert checks - {name.removeprefix("gateway: ") for name in named} - apart - {"authentication"} == set()
