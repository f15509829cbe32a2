"""`without`: imports that leave out optional packages, which a worker would load and never use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Import modules in the block as if these packages were not installed. Packages that are loaded already stay.

    Only for a process with one thread: imports of other threads would miss the packages, too.

    Arguments:
        names: packages or modules that the imported modules can do without.
    """
    left_out = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]  # Python reads None as "not installed"
    try:
        yield
    finally:
        for name in left_out:
            sys.modules.pop(name, None)
