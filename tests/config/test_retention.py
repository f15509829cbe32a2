"""`[retention]`: durations with units, "never", and errors that name file and line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from penstock.config.errors import ConfigError
from penstock.config.settings import load_settings


def read(folder: Path, text: str) -> dict[str, timedelta | None]:
    file = folder / "penstock.toml"
    file.write_text(f"[retention]\n{text}\n")
    return load_settings(file).retention.model_dump()


def test_the_defaults_keep_the_dead_and_the_audit_log_for_ever(tmp_path: Path) -> None:
    keep = read(tmp_path, "")
    assert keep["succeeded"] == timedelta(days=7)
    assert [name for name, kept in keep.items() if kept is None] == ["dead", "audit"]


def test_durations_have_a_unit(tmp_path: Path) -> None:
    keep = read(tmp_path, 'succeeded = "12h"\ncancelled = "1.5d"\ndead = "4w"\ndiscarded = "never"')
    assert (keep["succeeded"], keep["cancelled"]) == (timedelta(hours=12), timedelta(hours=36))
    assert (keep["dead"], keep["discarded"]) == (timedelta(weeks=4), None)


@pytest.mark.parametrize("value", ['"7"', "7", '"soon"', '"7 parsecs"', '"-1d"', '"59m"', '"0.5h"', '"1e9d"', "true"])
def test_an_invalid_retention_time_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"penstock\.toml:2: retention\.succeeded: .*(write|the minimum is 1h)"):
        read(tmp_path, f"succeeded = {value}")


def test_an_unknown_retention_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"penstock\.toml:2: retention\.successes: unknown setting"):
        read(tmp_path, 'successes = "7d"')


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_RETENTION", '{"succeeded": "1d"}')
    keep = read(tmp_path, 'succeeded = "2d"\ndead = "3d"')
    assert (keep["succeeded"], keep["dead"]) == (timedelta(days=1), timedelta(days=3))
