"""Scrubbing: values of sensitive fields are replaced by `***` in errors, tracebacks and other free text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote, quote_plus

from penstock.schemas.jobs.sensitive import HIDDEN

SHORTEST = 4
"""Characters of the shortest value that is looked for: a shorter one would be found in any text."""

_MOST_VALUES = 1000
_MOST_CHARACTERS = 1_000_000
"""Of a text that is searched; of a longer one the middle is dropped."""

# Pydantic cuts a long value in its middle, so no search would find it.
_INPUT_VALUE = re.compile(r"input_value=.*?, input_type=", re.DOTALL)


Scrub = Callable[[str], str]
"""Replaces what is sensitive in a text."""


class Scrubber:
    """Replaces values in texts.

    Arguments:
        values: texts and numbers. Of more than 1000 none is looked for: each text is then hidden whole.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        some = list(islice(values, _MOST_VALUES + 1))
        self._everything = len(some) > _MOST_VALUES
        forms = set() if self._everything else {form for value in some for form in _forms(value)}
        self._forms = sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with each value replaced by `***`."""
        if self._everything:
            return HIDDEN
        if len(text) <= _MOST_CHARACTERS:
            return self._replaced(text)
        # Half a value may be left where the text was cut, shorter than the longest: that much goes, too.
        longest, half = len(self._forms[0]) if self._forms else 0, _MOST_CHARACTERS // 2
        head, tail = self._replaced(text[:half]), self._replaced(text[-half:])
        return f"{head[: max(0, len(head) - longest)]}\n…\n{tail[longest:]}"

    def _replaced(self, text: str) -> str:
        text = _INPUT_VALUE.sub(f"input_value={HIDDEN}, input_type=", text)
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text


def _forms(value: Any) -> Iterator[str]:
    """Texts that a value may have in a message: as it is, quoted, escaped, and its lines."""
    text = str(value)
    yield text
    if isinstance(value, str):
        yield text.strip()
        for line in (text, *text.splitlines()):
            yield line.strip()
            yield repr(line)[1:-1]
            yield json.dumps(line)[1:-1]
            yield json.dumps(line, ensure_ascii=False)[1:-1]
            yield quote(line, errors="replace")
            yield quote_plus(line, errors="replace")
