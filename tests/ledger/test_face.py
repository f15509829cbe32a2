"""The ledger's public names: each is there, and importing the package loads none of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import penstock.ledger


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"penstock\.ledger"):
        penstock.ledger.nonsense  # noqa: B018


def test_importing_the_ledger_loads_no_sql() -> None:
    code = "import sys, penstock.ledger; print('sqlalchemy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
