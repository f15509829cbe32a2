"""The tool of `make sbom`, on a virtual environment with two small packages and without an index."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
REPORT = {
    "install": [
        {
            "metadata": {"name": "Small.Shop", "version": "1.0"},
            "download_info": {
                "url": "https://index.example.com/a.whl",
                "archive_info": {"hashes": {"sha256": "ab" * 32}},
            },
        },
        {
            "metadata": {"name": "tiny", "version": "2.0"},
            "download_info": {
                "url": "https://index.example.com/b.whl",
                "archive_info": {"hashes": {"sha256": "cd" * 32}},
            },
        },
        {"metadata": {"name": "penstock", "version": "0"}, "download_info": {"url": "file:///here", "dir_info": {}}},
    ]
}
"""As pip writes it."""


@pytest.fixture
def sbom(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "infra"))  # it imports its neighbour
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "infra/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A virtual environment with both packages, the first of which needs the second, and an unreported third."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for name, version, needs in (
        ("Small.Shop", "1.0", "Requires-Dist: tiny\n"),
        ("tiny", "2.0", ""),
        ("tool", "3", ""),
    ):
        folder = site / f"{name.replace('.', '_').lower()}-{version}.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n{needs}"
        (folder / "METADATA").write_text(metadata)
    return tmp_path / "venv/bin/python"


def test_a_bill_of_materials_has_the_hash_of_each_package(sbom: ModuleType, python: Path) -> None:
    text = sbom.describe(python, sbom.hashes(REPORT), "7.0.0")
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    root = document["metadata"]["component"]
    assert (root["name"], root["version"]) == ("penstock", "7.0.0")
    assert {item["name"]: item["hashes"] for item in document["components"]} == {
        "Small.Shop": [{"alg": "SHA-256", "content": "ab" * 32}],
        "tiny": [{"alg": "SHA-256", "content": "cd" * 32}],
    }
    needs = {entry["ref"]: entry.get("dependsOn") for entry in document["dependencies"]}
    assert needs["Small.Shop==1.0"] == ["tiny==2.0"]
    assert "index.example.com" not in text
    assert str(python.parent) not in text
    assert sbom.describe(python, sbom.hashes(REPORT), "7.0.0") == text


def test_requirements_are_pinned_by_hash_and_name_no_index(sbom: ModuleType) -> None:
    assert sbom.requirements(sbom.hashes(REPORT)) == (
        f"small-shop==1.0 \\\n    --hash=sha256:{'ab' * 32}\ntiny==2.0 \\\n    --hash=sha256:{'cd' * 32}\n"
    )


def test_the_defaults_are_those_of_the_image(sbom: ModuleType) -> None:
    text = sbom.DOCKERFILE.read_text()
    assert sbom.argument("PYTHON_VERSION", text) == "3.12"
    assert "workers" in sbom.argument("EXTRAS", text).split(",")
