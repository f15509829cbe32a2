"""Dotted paths into JSON documents, such as `meta.next` or `rows.0.id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def find(document: Any, path: str) -> Any:
    """The value at a path; the document for an empty path; None if nothing is there."""
    for key in path.split(".") if path else ():
        if isinstance(document, Mapping):
            document = document.get(key)
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document
