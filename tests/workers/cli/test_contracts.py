"""`penstock schema check`, `catalog` and `asyncapi`, as a pipeline runs them: in a checkout, against git or a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.schemas import registry

Run = Callable[..., Any]
MODULE = "pay_jobs"
JOBS = """
from penstock.schemas import Job

class Pay(Job, kind="shop.pay"):
    order: int
    to: str
"""


@pytest.fixture
def checkout(workplace: Path) -> Iterator[Path]:
    """A repository whose branch `main` has the jobs and their export."""
    (workplace / f"{MODULE}.py").write_text(JOBS)
    yield workplace
    forget()


def forget() -> None:
    """Each command of a shell would import the module again."""
    sys.modules.pop(MODULE, None)
    if (kind := registry.find("shop.pay")) is not None:
        registry.discard(kind)


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def write(folder: Path, source: str) -> None:
    forget()
    # With another length: a compiled file of the same second and size would count as current.
    (folder / f"{MODULE}.py").write_text(source)


def test_a_breaking_change_fails_the_check_against_a_git_ref(penstock: Run, checkout: Path) -> None:
    assert penstock("schema", "export", "--import", MODULE, "-o", "kinds.json").code == 0
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert penstock("schema", "check", "--against", "main", "--import", MODULE).code == 0

    write(checkout, JOBS.replace("    to: str\n", ""))
    (checkout / "kinds.json").unlink()
    for against in ("main", "HEAD:kinds.json"):
        result = penstock("schema", "check", "--against", against, "--import", MODULE, "--json")
        assert result.code == 1
        change = result.json[0]
        assert (change["severity"], change["kind"], change["field"], change["rule"]) == (
            "breaking",
            "shop.pay",
            "to",
            "field-removed",
        )
    result = penstock("schema", "check", "--against", "main", "--import", MODULE, "--accept", "shop.pay")
    assert result.code == 0
    assert "field-removed" in result.out


def test_a_change_that_needs_care_is_shown_and_passes(penstock: Run, checkout: Path) -> None:
    assert penstock("schema", "export", "--import", MODULE, "-o", "old.json").code == 0
    write(checkout, JOBS + '    note: str = ""\n')
    result = penstock("schema", "check", "--against", "old.json", "--import", MODULE)
    assert result.code == 0
    assert "workers-first" in result.out


def test_a_module_that_was_not_imported_is_thought_of(penstock: Run, checkout: Path) -> None:
    assert penstock("schema", "export", "--import", MODULE, "-o", "old.json").code == 0
    forget()
    result = penstock("schema", "check", "--against", "old.json", "--json")
    assert result.code == 1
    assert "--import" in next(change for change in result.json if change["kind"] == "shop.pay")["message"]


@pytest.mark.parametrize("against", ["no-such-ref", "no-such-ref:kinds.json", "--output=stolen", "broken.json"])
def test_an_unreadable_export_is_wrong_use_and_named(penstock: Run, checkout: Path, against: str) -> None:
    (checkout / "broken.json").write_text("{}")
    result = penstock("schema", "check", f"--against={against}")
    assert result.code == 2
    assert against in result.err
    assert not (checkout / "stolen").exists()


def test_an_accepted_kind_that_is_unknown_is_wrong_use(penstock: Run, checkout: Path) -> None:
    assert penstock("schema", "export", "-o", "old.json").code == 0
    assert penstock("schema", "check", "--against", "old.json", "--accept", "shop.payy").code == 2


def test_the_catalog_is_markdown_or_html(penstock: Run, checkout: Path) -> None:
    assert "## `shop.pay`" in penstock("schema", "catalog", "--import", MODULE).out
    assert penstock("schema", "catalog", "--kind", "shop.pay", "-o", "kinds.html").code == 0
    text = (checkout / "kinds.html").read_text()
    assert "<code>shop.pay</code>" in text
    assert "email.send" not in text


def test_the_asyncapi_document_follows_the_settings(penstock: Run, checkout: Path, prefix: str) -> None:
    document = penstock("schema", "asyncapi", "--title", "Shop", "--version", "3", "--import", MODULE).json
    assert document["info"]["title"] == "Shop"
    assert prefix in document["channels"]["default"]["description"]
    assert json.dumps(document["components"]["messages"]["shop.pay"]["name"]) == '"shop.pay"'
