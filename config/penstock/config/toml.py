"""Reading `penstock.toml` so that an error can name the line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config.errors import ConfigError

CONFIG_PATHS = (Path("penstock.toml"), Path("config/penstock.toml"))
"""Paths of the file, relative to the working directory, if none is named."""


def find_config(path: str | Path | None = None) -> Path | None:
    """The file to read: `path`, else `PENSTOCK_CONFIG`, else the first of `CONFIG_PATHS` that exists, else None.

    Raises:
        ConfigError: a file was named and is not there.
    """
    named = path or os.environ.get("PENSTOCK_CONFIG")
    if named is None:
        return next((path for path in CONFIG_PATHS if path.is_file()), None)
    if not Path(named).is_file():
        raise ConfigError(f"{named}: no such file; give an existing penstock.toml or leave PENSTOCK_CONFIG unset")
    return Path(named)


@dataclass(frozen=True, slots=True)
class TomlFile:
    path: Path | None
    values: dict[str, Any]
    text: str

    @classmethod
    def empty(cls) -> TomlFile:
        return cls(None, {}, "")

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """Parse a file.

        Raises:
            ConfigError: it is not TOML; names file, line and column.
        """
        try:
            text = path.read_text("utf-8")
            return cls(path, tomllib.loads(text), text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error

    def where(self, keys: Sequence[str]) -> str:
        """`file:line` of the deepest of `keys` that is in the file.

        tomllib keeps no positions, so the line is found again: the table header that opens the longest part of
        the path, then the assignment of the next key below it.
        """
        if self.path is None:
            return "settings"
        line, depth = 0, 0
        table: tuple[str, ...] = ()
        for number, text in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}", text):
                table = _split(header.group(1))
                names: Sequence[str] = table
            elif assignment := re.match(r"\s*([\w\"'.\- ]+?)\s*=", text):
                names = (*table, *_split(assignment.group(1)))
            else:
                continue
            if len(names) > depth and tuple(keys[: len(names)]) == tuple(names):
                line, depth = number, len(names)
        return f"{self.path}:{line}" if line else str(self.path)


def _split(dotted: str) -> tuple[str, ...]:
    """`kinds."shop.sync".retry` → its keys; a quoted one may have dots."""
    return tuple("".join(parts) for parts in re.findall(r"""\"([^"]*)\"|'([^']*)'|([^.\s"']+)""", dotted))
