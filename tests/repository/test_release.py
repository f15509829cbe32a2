"""`make release`, in clones of this repository's last commit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path("schemas/penstock/schemas/__init__.py")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def release(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "infra/release.py", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with one commit: the files of this work tree."""
    folder = tmp_path / "clone"
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    git(folder.parent, "init", "--quiet", "clone")
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.com")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "All of it")
    return folder


def state(folder: Path) -> tuple[str, str, str]:
    return git(folder, "rev-parse", "HEAD"), git(folder, "status", "--porcelain", "--ignored"), git(folder, "tag")


def test_a_dry_run_builds_and_changes_nothing(clone: Path) -> None:
    before = state(clone)
    done = release(clone, "7.0.0", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would build penstock-7.0.0.tar.gz" in done.stdout
    assert "would build penstock-7.0.0-py3-none-any.whl" in done.stdout
    assert state(clone) == before


def test_a_release_sets_the_version_moves_the_changes_and_tags(clone: Path) -> None:
    changes = (clone / "CHANGELOG.md").read_text().partition("## Unreleased\n")[2]
    done = release(clone, "7.0.0rc1")
    assert done.returncode == 0, done.stderr
    assert '__version__ = "7.0.0rc1"' in (clone / SOURCE).read_text()
    assert 'appVersion: "7.0.0rc1"' in (clone / "infra/kubernetes/chart/Chart.yaml").read_text()
    assert 'newTag: "7.0.0rc1"' in (clone / "infra/kubernetes/base/kustomization.yaml").read_text()
    head, _, rest = (clone / "CHANGELOG.md").read_text().partition("## Unreleased\n")
    assert head
    assert re.fullmatch(r"\n## 7\.0\.0rc1 \(\d{4}-\d\d-\d\d\)\n" + re.escape(changes), rest)
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "log", "--format=%s") == "Release 7.0.0rc1\nAll of it"
    assert git(clone, "describe", "--exact-match") == "v7.0.0rc1"
    built = sorted(path.name for path in (clone / "dist").iterdir())
    assert built == ["penstock-7.0.0rc1-py3-none-any.whl", "penstock-7.0.0rc1.tar.gz"]
    assert "git push --follow-tags" in done.stdout

    again = release(clone, "7.0.0rc1")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    empty = release(clone, "7.0.0")
    assert (empty.returncode, "has nothing under '## Unreleased'" in empty.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name the version: make release VERSION=0.2.0"),
        (["next"], "VERSION='next' is not a version such as 0.2.0"),
        (["0.0.9"], "VERSION=0.0.9 is not above"),
    ],
)
def test_a_wrong_version_is_refused(clone: Path, words: list[str], reason: str) -> None:
    before = state(clone)
    done = release(clone, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"no release: {reason}")
    assert state(clone) == before


def test_a_tree_that_is_not_clean_is_refused(clone: Path) -> None:
    (clone / "README.md").write_text("half done\n")
    done = release(clone, "7.0.0")
    assert done.returncode == 1
    assert "the tree is not clean; commit or stash first:\nM README.md" in done.stderr


def test_a_build_that_fails_takes_the_edits_back(clone: Path) -> None:
    (clone / "LICENSE").unlink()
    (clone / "pyproject.toml").write_text((clone / "pyproject.toml").read_text().replace("README.md", "GONE.md"))
    git(clone, "commit", "--quiet", "--all", "-m", "Broken")
    before = state(clone)
    done = release(clone, "7.0.0")
    assert done.returncode == 1
    assert "-m build" in done.stderr
    assert (*state(clone)[::2], git(clone, "status", "--porcelain")) == (*before[::2], "")


def test_the_version_is_stated_once() -> None:
    import importlib.metadata
    import tomllib

    from penstock.schemas import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert Path(project["tool"]["hatch"]["version"]["path"]) == SOURCE
    assert importlib.metadata.metadata("penstock")["Name"] == "penstock"
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)
