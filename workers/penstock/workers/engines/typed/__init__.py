"""Modules of typed jobs, written from the tasks of another framework's application: `penstock adopt`.

An engine makes a `Declaration` of each task, and `write_module` makes Python of them. The module is a start for
people to go on with, so it is laid out as ruff does it.
"""

from penstock.workers.engines.typed.declaration import Declaration
from penstock.workers.engines.typed.module import Access, Module, write_module

__all__ = ["Access", "Declaration", "Module", "write_module"]
