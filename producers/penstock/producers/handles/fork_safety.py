"""Fork safety: a child shares no connection, thread or lock with its parent."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

_retained: list[Any] = []


class Holder(Protocol):
    def after_fork(self) -> None:
        """Forget what was inherited; `retain` it, so that nothing closes it under the parent."""
        ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def register_after_fork(holder: Holder) -> None:
    """Call `after_fork` of the holder in every forked child."""
    _holders.add(holder)


def retain(*inherited: Any) -> None:
    """Never collect these: their finalizers would write on the parent's connections."""
    _retained.extend(inherited)


def _in_child() -> None:
    for holder in list(_holders):
        holder.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
