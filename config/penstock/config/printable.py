"""Text for people: durations in words, and data whose control characters are escaped, so that an id cannot steer a
terminal."""

from __future__ import annotations

import re
from datetime import timedelta

# C0, DEL and C1; the separators of lines and paragraphs, and what turns the direction of writing, which hide or forge
# lines; and halves of surrogate pairs, which no terminal can be sent.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, lines: bool = False) -> str:
    """The text with control characters escaped, such as `\\x1b`.

    Arguments:
        lines: keep the ends of lines and tabs, of a text that has several lines.
    """
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: _escaped(match[0], lines), text)


def _escaped(character: str, lines: bool) -> str:
    if lines and character in "\n\t":
        return character
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def length(time: timedelta) -> str:
    """`59 min`."""
    seconds = time.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
