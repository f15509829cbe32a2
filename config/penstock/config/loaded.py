"""Optional libraries, used where the process has imported them for a reason of its own."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def loaded(name: str) -> ModuleType | None:
    """The module if the process has imported it, else None. It is never imported for the asking.

    One that another thread is importing at the moment is waited for: it is in `sys.modules`, and lacks half its names.
    """
    return importlib.import_module(name) if name in sys.modules else None
