"""`penstock emails preview`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def templates(workplace: Path) -> Path:
    folder = workplace / "mails"
    (folder / "de").mkdir(parents=True)
    (folder / "hi.subject.txt").write_text("Hi {{ name }}")
    (folder / "hi.html").write_text("<style>p { color: red }</style><p>Hi {{ name }}</p>")
    (folder / "de" / "hi.subject.txt").write_text("Servus {{ name }}")
    (folder / "de" / "hi.txt").write_text("Servus!")
    with (workplace / "penstock.toml").open("a") as file:
        file.write(f'\n[emails]\ntemplates = "{folder}"\n')
    return folder


def test_a_template_is_shown_as_it_would_be_sent(penstock: Run, templates: Path) -> None:
    result = penstock("emails", "preview", "hi", "--variables", '{"name": "Ada & Co"}')
    assert (result.code, result.out) == (0, "Subject: Hi Ada & Co\n\nHi Ada & Co\n\n")
    whole = penstock("emails", "preview", "hi", "--variables", '{"name": "Ada & Co"}', "--json").json
    assert '<p style="color: red;">Hi Ada &amp; Co</p>' in whole["html"]
    assert (
        "Servus Ada" in penstock("emails", "preview", "hi", "--locale", "de-AT", "--variables", '{"name": "Ada"}').out
    )


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["hi"], 1, "'name' is undefined"),
        (["missing"], 1, "needs missing.subject.txt"),
        (["../hi"], 2, "template"),
        (["hi", "--variables", "{"], 2, "not JSON"),
        (["hi", "--variables", "[]"], 2, "variables"),
        (["hi", "--locale", "de", "--variables", '{"name": 1}', "--open"], 1, "no HTML to open"),
    ],
)
def test_trouble_is_named(penstock: Run, templates: Path, arguments: list[str], code: int, expected: str) -> None:
    result = penstock("emails", "preview", *arguments)
    assert result.code == code
    assert expected in result.err


def test_the_html_opens_in_the_browser_of_the_environment(templates: Path, tmp_path: Path) -> None:
    target = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {target}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "penstock", "emails", "preview", "hi", "--variables", '{"name": "Ada"}', "--open"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"BROWSER": f"{browser} %s"}, timeout=60)
    path = Path(target.read_text().strip().removeprefix("file://"))
    assert '<p style="color: red;">Hi Ada</p>' in path.read_text()
    path.unlink()
