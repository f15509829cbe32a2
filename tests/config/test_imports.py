"""Imports without optional packages."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from penstock.config.process.imports import without


def test_a_package_that_is_left_out_is_missing_in_the_block_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "optional_paint.py").write_text("")
    user = "try:\n    import optional_paint\nexcept ImportError:\n    optional_paint = None\n"
    for name in ("plain_user", "painted_user"):
        (tmp_path / f"{name}.py").write_text(user)
    with without("optional_paint"):
        plain = importlib.import_module("plain_user")
    painted = importlib.import_module("painted_user")
    assert plain.optional_paint is None
    assert painted.optional_paint is sys.modules["optional_paint"]


def test_a_package_that_is_loaded_stays() -> None:
    with without("json"):
        assert importlib.import_module("json") is sys.modules["json"] is not None
    assert "json" in sys.modules
