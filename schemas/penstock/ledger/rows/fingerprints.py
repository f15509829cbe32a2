"""Fingerprints of errors: dead letters with the same fingerprint have, as far as can be seen, the same cause."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple


class Frame(NamedTuple):
    """Where in the code an error came from, without what changes from one deployment to the next."""

    file: str
    """With its folder."""
    function: str


_TYPE = re.compile(r"([A-Za-z_][\w.]*)(?::\s|$)")

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DAY = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+)?"
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?"
_ZONE = r"(?:\s?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?"
_PLACEHOLDERS = [
    # In this order: quoted text is one thing, and a number is also part of all that comes before it.
    ("<text>", re.compile(r"""(?<!\w)[bBuUrR]{0,2}(['"`]).*?(?:\1(?!\w)|\Z)|[“«„].*?[”»“]""", re.DOTALL)),
    ("<address>", re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s>)\]}]+|[^\s<>(),;:=]+@[^\s<>(),;:]+", re.IGNORECASE)),
    ("<time>", re.compile(rf"\b\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK}{_ZONE})?(?!\w)")),
    ("<time>", re.compile(rf"\b{_DAY}\d{{1,2}} {_MONTH} \d{{4}}(?: {_CLOCK}{_ZONE})?(?!\w)")),
    ("<time>", re.compile(rf"\b{_DAY}{_MONTH}\s+\d{{1,2}}(?: {_CLOCK}{_ZONE})?(?:,? \d{{4}})?(?!\w)")),
    ("<time>", re.compile(rf"(?<![\w:.]){_CLOCK}{_ZONE}(?![\w:])")),
    (
        "<address>",
        re.compile(r"(?<![\w:])(?=[0-9a-f:]*\d)(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE),
    ),
    # UUIDs, hex, numbers, names of hosts with a number: every word with a digit in it, and such words joined.
    ("<id>", re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b0x[0-9a-f]+\b", re.IGNORECASE)),
    ("<number>", re.compile(r"[+-]?(?<![\w.,:])\d+(?:[.,:]\d+)*(?:e[+-]?\d+)?(?![\w-])", re.IGNORECASE)),
    ("<id>", re.compile(r"(?<![\w-])(?=[\w-]*\d)[\w-]*(?:[.,:][\w-]*\d[\w-]*)*")),
    ("<id>", re.compile(r"\b[0-9a-f]{8,}\b", re.IGNORECASE)),  # hex that happens to have letters only
    # The value of `name=value`, or of `(name)=(value)` as PostgreSQL puts it.
    ("<text>", re.compile(r"(?<=[\w)]=)(?:\([^()]*\)|\{[^{}]*\}|\[[^\[\]]*\]|[^\s()<>,;&\]}]+)")),
    ("<path>", re.compile(r"(?<![\w/.>])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][\w<>.@+-]+(?:[/\\][\w<>.@+-]*)*")),
    ("<path>", re.compile(r"(?<![\w/.>-])[\w<>-][\w<>.@+-]*/[\w<>@+/-]*\.[a-z]\w*", re.IGNORECASE)),
]
_WORD = re.compile(r"<\w+>|(?<![\w<])[^\W\d](?:[\w.]*\w)?(?:'\w+)?")
_EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception|Warning|Exit|Interrupt)")
_IDENTIFIER = re.compile(r"\w[._]\w|^_|_$|[a-z][A-Z]")
_SHORT = 3
_COMMON = re.compile(
    "a|all|and?|any|are|as|at|be|but|by|can|did|do|for|get|ha[ds]|i[fnst]?|its|may|nor?|not|of|off|on|or|our|out|own|per|"
    "so|the|too?|up|via|was|we|who|yet|you",
    re.IGNORECASE,
)
"""Short words of sentences. Any other word as short may be a name, a code or a unit, which differ from job to job."""
_REPEATED = re.compile(r"(<(?:text|address|time|id|number|path)>)(?:(?:,\s*|\s+)\1)+")

_LONGEST = 2000
"""An attempt's error is cut here too."""

_FRAME = re.compile(r'^[ \t|+-]*File "([^"\n]*)", line \d+, in (.+?)\s*$', re.MULTILINE)
_LIBRARY = re.compile(r"(?:^|/)(?:site|dist)-packages/")
_STANDARD = re.compile(r"(?:^|/)(?:lib(?:64)?/python\d[\d.]*t?/(?!(?:site|dist)-packages/)|Lib/(?!site-packages/))|^<")
_INTERNAL = re.compile(
    r"(?:^|/)penstock/(?:config|schemas|ledger|producers|workers/(?:brokers|dispatcher|engines|executor|handlers))/"
)
_DIGITS = re.compile(r"\d+")


def fingerprint(kind: str | None, error: str, traceback: str | None = None) -> str:
    """16 hexadecimal digits from the kind, the type of the error, its normalised message and the last own frame.

    Arguments:
        error: `Type: message`, as an attempt's error is recorded; or the reason and the detail of what never ran.
        traceback: as Python prints it.
    """
    error = error.strip()
    typed = _TYPE.match(error)
    name, message = (typed[1], error[typed.end() :]) if typed else ("", error)
    frame = last_own_frame(traceback) if traceback else None
    parts = (kind or "", name, normalised(message), *(frame or ("", "")))
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:16]


def crash_fingerprint(kind: str) -> str:
    """Fingerprint of jobs that died with their workers: no error was raised, and hosts and signals differ by crash."""
    return fingerprint(kind, "crashed")


def normalised(message: str) -> str:
    """The message with placeholders for what differs from job to job: `<text>` for quoted text and values, `<address>`,
    `<time>`, `<number>`, `<path>`, and `<id>` for identifiers, names and short words. Several of one sort in a row
    become one."""
    message = message[:_LONGEST]
    for placeholder, pattern in _PLACEHOLDERS:
        message = pattern.sub(placeholder, message)
    return _REPEATED.sub(r"\1", " ".join(_WORD.sub(_word, message).split()))


def _word(match: re.Match[str]) -> str:
    """The word, or `<id>`."""
    word = match[0]
    if word.startswith("<") or _COMMON.fullmatch(word) or _EXCEPTION.fullmatch(word):
        return word
    # A capital begins a sentence, or a name in it.
    before = match.string[max(match.start() - 2, 0) : match.start()].strip(" ")
    within_sentence = before != "" and before[-1] not in ".!?:;\n"
    is_short = len(word) <= _SHORT and word.isascii()  # in Chinese, as many characters are a sentence
    is_name = is_short or _IDENTIFIER.search(word) or (within_sentence and word[0].isupper())
    return "<id>" if is_name else word


def last_own_frame(traceback: str) -> Frame | None:
    """Last frame in the application's own code: not in Python, an installed package or Penstock's machinery.

    Without such a frame, as when the application is itself installed as a package, the last frame in a package counts,
    else the last frame. None if the traceback has no frames.
    """
    frames = [(file.replace("\\", "/"), function) for file, function in _FRAME.findall(traceback)]
    foreign = [frame for frame in frames if not _STANDARD.search(frame[0]) and not _INTERNAL.search(frame[0])]
    own = [frame for frame in foreign if not _LIBRARY.search(frame[0])]
    for candidates in (own, foreign, frames):
        if candidates:
            file, function = candidates[-1]
            # Of the folders above, the name may be that of a release, of a container's layer or of a machine.
            return Frame(_DIGITS.sub("0", "/".join(file.split("/")[-2:])), function)
    return None
