"""W3C `traceparent`: the header that names a trace and a span in it. https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import re

_FORM = re.compile(r"(?!ff)([0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")


def read_traceparent(header: object) -> str | None:
    """The header in the form of version 00, which has 55 characters; None: it is not a valid one."""
    match = _FORM.fullmatch(header.strip()) if isinstance(header, str) else None
    if match is None or (match[1] == "00" and match[3]):
        return None
    return f"00{match[2]}"  # of a later version, only the fields of version 00
