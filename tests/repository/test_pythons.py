"""CI's search for the other Pythons of the machine."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, on a machine without any Python but those that a test makes."""
    spec = importlib.util.spec_from_file_location("pythons", ROOT / "infra/pythons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for variable in module.INSTALLED:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "SYSTEM", (tmp_path / "usr/bin",))
    return module


def install(path: Path, version: str) -> Path:
    """A file that answers like a Python of this version."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "place",
    [
        ".pyenv/versions/3.13.0/bin/python",
        ".asdf/installs/python/3.13.0/bin/python",
        ".local/share/mise/installs/python/3.13.0/bin/python",
        ".local/share/uv/python/cpython-3.13.0-linux-x86_64-gnu/bin/python3",
        "miniconda3/envs/tests/bin/python3.13",
        "usr/bin/python3.13",
        "bin/python3.13",
    ],
)
def test_a_python_of_each_version_manager_is_found(pythons: ModuleType, tmp_path: Path, place: str) -> None:
    assert pythons.find("3.13") is None
    python = install(tmp_path / place, "3.13")
    assert pythons.find("3.13") == python


def test_a_python_of_another_version_than_its_name_says_is_not_used(pythons: ModuleType, tmp_path: Path) -> None:
    install(tmp_path / "bin/python3.13", "3.12")
    assert pythons.find("3.13") is None


def test_a_missing_python_is_skipped_with_a_line(
    pythons: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pythons.py"])
    assert pythons.main() == 0
    others = [version for version in pythons.SUPPORTED if version != "{}.{}".format(*sys.version_info)]
    assert capsys.readouterr().out.splitlines() == [
        f"Python {version}: not found; its tests are skipped" for version in others
    ]


def test_the_supported_versions_are_the_published_ones(pythons: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    published = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert list(pythons.SUPPORTED) == published
    assert project["requires-python"] == f">={published[0]}"


def test_the_selection_is_there(pythons: ModuleType) -> None:
    assert [name for name in pythons.SELECTION if not (ROOT / name).exists()] == []
