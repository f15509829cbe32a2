"""The house rules: one namespace over four source roots, and imports that run one way."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("config", "schemas", "ledger", "producers", "workers")
"""Packages of the namespace. Each may import the ones before it."""
FOLDER = {room: ROOT / ("schemas" if room == "ledger" else room) / "penstock" / room for room in ROOMS}
"""Package → its folder; the ledger is the second package of the `schemas` root."""

TESTS = sorted((ROOT / "tests").rglob("*.py"))
SOURCES = [path for folder in FOLDER.values() for path in folder.rglob("*.py")]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names.add(node.module or "")
    return names


def test_penstock_is_a_namespace_without_an_init_file() -> None:
    assert not list(ROOT.glob("*/penstock/__init__.py"))
    assert all((folder / "py.typed").exists() for folder in FOLDER.values())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    above = ROOMS[ROOMS.index(room) + 1 :]
    for path in FOLDER[room].rglob("*.py"):
        for name in imported(path):
            assert not any(name == f"penstock.{other}" or name.startswith(f"penstock.{other}.") for other in above), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


@pytest.mark.parametrize("engine", ["celery", "dramatiq", "rq"])
def test_only_its_own_engine_imports_an_engine(engine: str) -> None:
    for path in SOURCES:
        inside = f"engines/{engine}" in path.as_posix()
        for name in imported(path):
            assert inside or name.split(".")[0] != engine, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ["config", "schemas", "producers"])
def test_what_a_web_backend_imports_is_light(room: str) -> None:
    heavy = ["celery", "dramatiq", "sqlalchemy", "fastapi", "boto3", "redis", "kombu", "amqp", "pydantic_settings"]
    code = f"import sys, json, penstock.{room}; print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_making_a_producer_loads_no_client_before_the_first_connection() -> None:
    code = (
        "import sys; from penstock.producers import Producer; "
        "Producer('redis://127.0.0.1:1/0'); Producer('amqp://127.0.0.1:1//'); "
        "print([name for name in ('redis', 'kombu', 'amqp', 'sqlalchemy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_reads_no_environment_and_opens_no_connection() -> None:
    """Settings are read by load_settings() alone; a broken environment must not break an import."""
    code = "import penstock.workers, penstock.producers, penstock.ledger.sql.tables"
    env = {"PATH": "/usr/bin", "PENSTOCK_BROKER_URL": "nonsense", "PENSTOCK_CONFIG": "/nowhere.toml"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


# The shape of the folders.

MOST_SIBLINGS = 12
MOST_LINES = 400
REASON = "# Over 400 lines: "
"""A file that needs more lines says why, in a comment that begins so."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts[1:]).removesuffix(".__init__"): path for path in SOURCES
}
"""Module name → file."""


def graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → modules that it imports, at its top, inside a function, or for types alone."""
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        edges[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in targets:
                module = target if target in modules else target.rpartition(".")[0]
                if module in modules and module != name:
                    edges[name].add(module)
    return edges


def siblings(package: str, edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Entry of a package → entries of the same package that it imports. Its `__init__` belongs to none of them."""
    depth = package.count(".") + 1
    inside = {name: name.split(".")[depth] for name in edges if name.startswith(f"{package}.")}
    edges_inside: dict[str, set[str]] = {entry: set() for entry in inside.values()}
    for name, entry in inside.items():
        edges_inside[entry] |= {inside[target] for target in edges[name] if target in inside} - {entry}
    return edges_inside


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Entries that import each other in a circle, the first one again at the end; empty if there are none."""
    done: set[str] = set()

    def walk(entry: str, path: list[str]) -> list[str]:
        if entry in path:
            return [*path[path.index(entry) :], entry]
        if entry not in done:
            for target in sorted(arrows.get(entry, ())):
                if trail := walk(target, [*path, entry]):
                    return trail
            done.add(entry)
        return []

    return next((trail for entry in sorted(arrows) if (trail := walk(entry, []))), [])


PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


def test_no_folder_has_more_than_twelve_entries() -> None:
    crowded = {}
    for folder in {path.parent for path in (*SOURCES, *TESTS)}:
        entries = [entry for entry in folder.iterdir() if entry.is_dir() or entry.suffix == ".py"]
        count = len([entry for entry in entries if entry.name not in ("__init__.py", "__pycache__")])
        if count > MOST_SIBLINGS:
            crowded[str(folder.relative_to(ROOT))] = count
    assert not crowded


def test_no_two_entries_of_a_folder_import_each_other() -> None:
    edges = graph(MODULES)
    circles = {package: trail for package in PACKAGES if (trail := circle(siblings(package, edges)))}
    assert not circles


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    for name, text in (("one", "import shop.two.deep"), ("two/deep", "def f():\n    from shop import one")):
        file = tmp_path / "shop" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    modules = {"shop.one": tmp_path / "shop/one.py", "shop.two.deep": tmp_path / "shop/two/deep.py"}
    assert circle(siblings("shop", graph(modules))) == ["one", "two", "one"]


def test_no_file_is_over_400_lines_without_a_reason() -> None:
    files = [*SOURCES, *TESTS, *(ROOT / "benchmarks").rglob("*.py")]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in files}
    long = {name: text.count("\n") for name, text in texts.items() if text.count("\n") > MOST_LINES}
    assert not {name: lines for name, lines in long.items() if REASON not in texts[name]}


def test_a_private_module_or_name_stays_in_its_package() -> None:
    """`_module` is for its own package alone, and `_name` for its own module."""
    for name, path in MODULES.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("penstock."):
                continue
            for alias in node.names:
                parts = f"{node.module}.{alias.name}".split(".")
                private = next(
                    (place for place, part in enumerate(parts) if part.startswith("_") and part != "__version__"), None
                )
                if private is not None:
                    home = ".".join(parts[:private])
                    where = f"{path.relative_to(ROOT)}:{node.lineno} imports {'.'.join(parts)}"
                    assert home in PACKAGES, f"{where}: a private name"
                    assert package == home or package.startswith(f"{home}."), f"{where}: a private module"


def test_every_room_says_what_is_public() -> None:
    for room in ROOMS:
        assert "__all__" in (FOLDER[room] / "__init__.py").read_text(), f"penstock.{room} has no __all__"


IMPORTED = re.compile(r"^\s*from (penstock[\w.]*) import \(?([\w, \n]+?)\)?\s*(?:#.*)?$", re.MULTILINE)


def documented_imports() -> Iterator[tuple[str, str, str]]:
    """(page, module, name) of each `from penstock… import …` in pages and examples."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    for page in pages:
        for module, names in re.findall(
            r"^\s*from (penstock[\w.]*) import \(?([\w, \n]+?)\)?\s*(?:#.*)?$", page.read_text(), re.M
        ):
            for name in re.findall(r"\w+", re.sub(r"\bas \w+", "", names)):
                yield str(page.relative_to(ROOT)), module, name


def public_names(module: str) -> list[str] | None:
    """`__all__` of a module, read from its file; None if it has none."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == "__all__" for name in node.targets
        ):
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def test_pages_and_examples_import_only_what_is_public() -> None:
    for page, module, name in documented_imports():
        public = public_names(module)
        assert public is not None, f"{page} imports from {module}, which has no __all__"
        assert name in public or f"{module}.{name}" in MODULES, (
            f"{page} imports {name} from {module}, whose __all__ lacks it"
        )
