"""Dotted paths into JSON documents, such as `meta.next` or `rows.0.id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def find(document: Any, path: str, absent: Any = None) -> Any:
    """The value at a path; the document for an empty path; `absent` if nothing is there, None below a null."""
    for key in path.split(".") if path else ():
        if document is None:
            return None
        if isinstance(document, Mapping):
            document = document.get(key, absent)
            if document is absent:
                return absent
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return absent
    return document
