"""What a forked child must not share with its parent: connections, threads, and locks that a thread may hold."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

_kept: list[Any] = []


class Holder(Protocol):
    def after_fork(self) -> None:
        """Forget what was inherited; `keep` it, so that nothing closes it under the parent."""
        ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def tell_after_fork(holder: Holder) -> None:
    """Have `after_fork` called in every forked child."""
    _holders.add(holder)


def keep(*inherited: Any) -> None:
    """Never collect these: their finalizers would speak on the parent's connections."""
    _kept.extend(inherited)


def _in_child() -> None:
    for holder in list(_holders):
        holder.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
