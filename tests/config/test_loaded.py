from __future__ import annotations

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
