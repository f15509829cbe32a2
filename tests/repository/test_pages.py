"""Pages name only what exists: modules, files, links; and they use the common word."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "infra/README.md",
    ROOT / "examples/README.md",
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PACKAGES = {
    "config": "config",
    "schemas": "schemas",
    "ledger": "schemas",
    "producers": "producers",
    "workers": "workers",
}
"""Package → its source root."""

NOT_A_MODULE = re.compile(r"penstock\.(toml|env|service|producer|yaml)\b")

COMMON_WORDS = {
    r"\banew\b": "again",
    r"\bbegun\b": "started",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bwhoever\b": "the caller, any dispatcher",
    r"\b(nobody|somebody)\b": "no one, someone; better the subject itself",
    r"(?<!there )\b(is|are) no (?!(longer|more)\b)": "is not a",
    r"\b(is|are|was|were|goes|go) away\b": "unavailable, down",
    r"\bbeside\b": "next to, in addition to, with",
    r"\bwhat becomes of\b": "what happens to",
    r"\b(tells|told)\b": "reports, returns, notifies, says",
    r"\bstands (for|in|beside|under|at)\b": "is, appears, counts as",
    r"\bis (told|said) (of|to|by)\b": "is notified, reported",
}
"""Word, as a pattern → what to write instead."""


def page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def resolved(name: str) -> object:
    """The module, or the attribute of a module, of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
            continue
        for attribute in parts[end:]:
            value = getattr(value, attribute)
        return value
    raise ModuleNotFoundError(name)


def module_paths(text: str) -> set[str]:
    """Dotted names below a package of ours, in prose and in code."""
    names = re.findall(rf"\bpenstock\.(?:{'|'.join(PACKAGES)})(?:\.\w+)*", text)
    for module, imported in re.findall(r"^\s*from (penstock[\w.]+) import ([\w, ]+)$", text, re.MULTILINE):
        names += [f"{module}.{name.split(' as ')[0].strip()}" for name in imported.split(",")]
    return {name for name in names if not NOT_A_MODULE.match(name)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # frameworks that pages import have theirs
@pytest.mark.parametrize("path", PAGES, ids=page)
def test_module_paths_can_be_imported(path: Path) -> None:
    for name in sorted(module_paths(path.read_text())):
        if ".contrib.django" not in name:  # needs Django's settings; tests/frameworks runs its page
            resolved(name)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_functions_of_imported_modules_exist(path: Path) -> None:
    """`from penstock.ledger.rows import audit` and then `audit.find(…)`."""
    text = path.read_text()
    for module, names in re.findall(r"^\s*from (penstock[\w.]+) import ([\w, ]+)$", text, re.MULTILINE):
        if ".contrib." in module:
            continue
        for name in names.split(", "):
            value = resolved(f"{module}.{name}")
            if isinstance(value, ModuleType):
                for attribute in re.findall(rf"\b{name}\.([A-Za-z]\w*)\(", text):
                    assert hasattr(value, attribute), f"{module}.{name}.{attribute}"


def commands(text: str) -> list[str]:
    """The command lines of `penstock` on a page, shown or named, without comments."""
    output = re.findall(r"^ {4}(?:\$ )?penstock ([^\n]+)$", text, re.MULTILINE)
    named = re.findall(r"`penstock ([a-z][^`]*)`", text)
    return [re.split(r"\s{2,}#|\s#\s|\s\[|\s2>", line.replace("\n", " "))[0] for line in output + named]


@cache
def command_line() -> Any:
    from typer.main import get_command

    from penstock.workers.cli import app

    return get_command(app)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_commands_and_their_options_exist(path: Path) -> None:
    for line in commands(path.read_text()):
        command, words = command_line(), line.split()
        while hasattr(command, "get_command") and words and not words[0].startswith("-"):
            child = command.get_command(None, words[0])
            assert child is not None, f"penstock {line}: no {words[0]!r}"
            command, words = child, words[1:]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert used <= options | {"--help"}, f"penstock {line}: no {sorted(used - options)}"


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_sections_of_penstock_toml_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.config.settings import load_settings

    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for block in re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))?)+", text, re.MULTILINE):
        toml = re.sub(r"^ {4}", "", block, flags=re.MULTILINE)
        if re.match(r"\[|\w+_url = ", toml):
            for name in re.findall(r"\$\{(\w+)\}", toml):
                monkeypatch.setenv(name, "long enough for a secret")
            (tmp_path / "penstock.toml").write_text(toml)
            load_settings(tmp_path / "penstock.toml")


def files_named(text: str) -> set[str]:
    folders = "|".join((*PACKAGES, "tests", "benchmarks", "infra", "docs", "examples"))
    return set(re.findall(rf"`((?:{folders})/[\w./-]*)`", text))


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_files_and_folders_exist(path: Path) -> None:
    missing = []
    for name in sorted(files_named(path.read_text())):
        package = name.partition("/")[0]
        short = ROOT / PACKAGES.get(package, "") / "penstock" / name
        if not (ROOT / name).exists() and not short.exists():
            missing.append(name)
    assert missing == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", head).lower()).replace(" ", "-") for head in heads
    }


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=page)
def test_links_lead_to_pages_and_headings(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?:|/)([^)\s]*)\)", path.read_text()):
        target, _, anchor = link.partition("#")
        other = path.parent / target if target else path
        if not other.exists() or (anchor and anchor not in anchors(other.read_text())):
            broken.append(link)
    assert broken == []


def prose(text: str) -> str:
    """A page without its code."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_pages_use_the_common_word(path: Path) -> None:
    text = prose(path.read_text()).replace("\n", " ")
    hits = [
        f"{match[0]!r}: {instead}"
        for pattern, instead in COMMON_WORDS.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert hits == []


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_lines_are_short_enough_to_compare(path: Path) -> None:
    """Tables and links may be longer."""
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > 140 and not line.startswith("|")] == []
