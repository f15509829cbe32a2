from __future__ import annotations

import importlib
import math
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from penstock.config.loaded import loaded


def test_a_module_that_nothing_has_imported_stays_so() -> None:
    assert loaded("antigravity") is None
    assert "antigravity" not in sys.modules


def test_a_module_that_another_thread_imports_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is in `sys.modules` from the first moment, without its names.
    gates = ModuleType("half_imported_gates")
    gates.begun, gates.go_on = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "half_imported_gates", gates)
    monkeypatch.syspath_prepend(tmp_path)
    lines = "import half_imported_gates as gates; gates.begun.set(); assert gates.go_on.wait(60); name = 'whole'"
    (tmp_path / "half_imported.py").write_text(lines)
    importing = threading.Thread(target=__import__, args=("half_imported",))
    importing.start()
    assert gates.begun.wait(60)
    assert not hasattr(sys.modules["half_imported"], "name")
    seen: list[str] = []

    def look() -> None:
        module = loaded("half_imported")
        assert module is not None
        seen.append(module.name)

    looking = threading.Thread(target=look)
    looking.start()
    gates.go_on.set()
    importing.join(60)
    looking.join(60)
    monkeypatch.delitem(sys.modules, "half_imported")
    assert seen == ["whole"]


def test_a_name_of_a_package_is_loaded_when_it_is_first_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_names").mkdir()
    (tmp_path / "late_names/__init__.py").write_text(
        "from penstock.config.loaded import load_on_use\n"
        "homes = {'value': '.home', 'home': '.home', 'tau': 'math'}\n"
        "__getattr__, __dir__ = load_on_use(__name__, homes, modules=['home'])\n"
    )
    (tmp_path / "late_names/home.py").write_text("value = [1]\n")
    package = importlib.import_module("late_names")
    assert "late_names.home" not in sys.modules
    assert {"value", "home", "tau"} <= set(dir(package))
    value = package.value
    assert value == [1]
    assert vars(package)["value"] is value
    assert package.home is sys.modules["late_names.home"]
    assert package.tau == math.tau
    with pytest.raises(AttributeError, match="'late_names' has no attribute 'other'"):
        package.other  # noqa: B018
    for name in ("late_names", "late_names.home"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("package", ["penstock.schemas", "penstock.ledger", "penstock.workers"])
def test_each_public_name_of_a_package_is_loaded_from_its_home(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted({*module._HOMES} | ({"__version__"} & {*module.__all__})) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
