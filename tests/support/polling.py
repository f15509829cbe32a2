"""Wait for a condition, however busy the machine is; a wait that is in vain says for what and shows the last values."""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import reprlib
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_SECONDS = 90.0
"""Longest wait for anything that takes seconds at most on an idle machine."""
SETTLE_SECONDS = 300.0
"""Longest wait for a whole installation: a chaos round that settles, `penstock up`, a server of our own that starts."""

_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.1
"""Pauses grow while a wait lasts: a look at a database or a log costs time that the thing waited for needs."""
_parsing = threading.Lock()  # Python 3.11 cannot parse in two threads at once

_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxset, _short.maxtuple = 4, 12, 12, 12, 12
_short.maxstring = _short.maxother = 600


def until(
    condition: Callable[[], T | None],
    what: str = "",
    seconds: float = WAIT_SECONDS,
    *,
    unless: Callable[[], object] | None = None,
    pause: float = _PAUSE_SECONDS,
) -> T:
    """Poll until the condition returns something true, and return that.

    Arguments:
        condition: an AssertionError that it raises counts as not yet; any other error ends the wait.
        what: name of the thing waited for; the condition's source is shown in any case.
        unless: a true value ends the wait in failure at once and is shown, such as the log of a process that died.

    Raises:
        AssertionError: the time is over. It shows the condition, its last value, and the values of its parts.
    """
    poll = _Poll(condition, what, seconds, unless, pause=pause)
    while not poll.look():
        time.sleep(poll.pause())
    return poll.value  # type: ignore[no-any-return]


QUIET_LOOKS = 15
"""Looks in a row, 0.1 s apart, at which nothing has changed: three heartbeats of a worker."""


def until_quiet(value: Callable[[], T], what: str = "quiet") -> T:
    """Wait until a value changes no more, and return it."""
    values: list[T] = []

    def is_quiet() -> bool:
        values.append(value())
        last = values[-QUIET_LOOKS:]
        return len(last) == QUIET_LOOKS and all(each == last[0] for each in last)

    until(is_quiet, what, pause=0.1)
    return values[-1]


async def until_async(condition: Callable[[], T | None], what: str = "", seconds: float = WAIT_SECONDS) -> T:
    """`until` for a coroutine: the event loop runs on between two looks."""
    poll = _Poll(condition, what, seconds, None)
    while not poll.look():  # noqa: ASYNC110
        await asyncio.sleep(poll.pause())
    return poll.value  # type: ignore[no-any-return]


def retry(
    act: Callable[[], T],
    *errors: type[Exception],
    unless: Callable[[], object] | None = None,
    pause: float = _PAUSE_SECONDS,
) -> T:
    """Call until it raises none of these errors, and return what it returns; at the end of the time the last one is
    raised as the cause."""
    results: list[T] = []

    def succeeds() -> bool:
        try:
            results.append(act())
        except errors as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        return True

    poll = _Poll(succeeds, "", WAIT_SECONDS, unless, source_of=act, pause=pause)
    while not poll.look():
        time.sleep(poll.pause())
    return results[0]


class _Poll:
    """A wait: its condition, the last value, and its deadline."""

    def __init__(
        self,
        condition: Callable[[], Any],
        what: str,
        seconds: float,
        unless: Callable[[], object] | None,
        source_of: Callable[[], Any] | None = None,
        *,
        pause: float = _PAUSE_SECONDS,
    ) -> None:
        self.value: Any = None
        self._first_pause, self._pause = pause, pause
        self._condition, self._what, self._seconds, self._unless = condition, what, seconds, unless
        self._source_of = source_of or condition
        self._error: AssertionError | None = None
        self._deadline = time.monotonic() + seconds

    def look(self) -> bool:
        try:
            self.value, self._error = self._condition(), None
        except AssertionError as error:
            self._error = error
        if self._error is None and self.value:
            return True
        if self._unless is not None and (reason := self._unless()):
            raise AssertionError(f"{self._wanted()} will not come about: {reason}")
        if time.monotonic() >= self._deadline:
            raise AssertionError("\n".join([f"not within {self._seconds:g} s: {self._wanted()}", *self._seen()])) from (
                self._error
            )
        return False

    def pause(self) -> float:
        """Seconds until the next look."""
        pause, self._pause = self._pause, max(min(self._pause * 1.1, _LONGEST_PAUSE_SECONDS), self._first_pause)
        return min(pause, max(self._deadline - time.monotonic(), 0.0))

    def _wanted(self) -> str:
        source = _source(self._source_of)
        return f"{self._what} ({source})" if self._what else source

    def _seen(self) -> Iterator[str]:
        if self._error is not None:
            yield f"  it last failed with: {self._error}"
            return
        yield f"  last value: {_short.repr(self.value)}"
        for text, value in _parts(self._condition):
            yield f"  {text} = {_short.repr(value)}"


def _source(condition: Callable[[], Any]) -> str:
    """Source text of a lambda's expression; of another function its name and the first line of its docstring."""
    if (body := _lambda_body(condition)) is not None:
        return ast.unparse(body)
    name = getattr(condition, "__qualname__", None) or repr(condition)
    doc = (inspect.getdoc(condition) or "").partition("\n")[0]
    return f"{name.rpartition('<locals>.')[2]}()" + (f": {doc}" if doc else "")


def _lambda_body(condition: Callable[[], Any]) -> ast.expr | None:
    code: CodeType | None = getattr(condition, "__code__", None)
    if code is None or code.co_name != "<lambda>":
        return None
    # The place of each instruction lies within the lambda that it belongs to, and within the lambdas around that.
    places = [place for place in code.co_positions() if place[0] is not None and place[2] != place[3]]
    with _parsing:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and all(_is_within(node.body, line, column) for line, _, column, _ in places)
    ]
    return max(around, key=lambda node: node.col_offset).body if around else None


def _is_within(node: ast.expr, line: int | None, column: int | None) -> bool:
    start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return start <= (line or 0, column or 0) < end


def _parts(condition: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
    """Source and value of the parts of a lambda, such as both sides of a comparison: its result alone says little."""
    if (body := _lambda_body(condition)) is None:
        return
    names = _names(condition)
    for part in _operands(body):
        code = compile(ast.Expression(part), "<condition>", "eval")
        try:
            value = eval(code, names)
        except Exception as error:  # a right side that makes sense only where the left one holds
            value = error
        yield ast.unparse(part), value


def _operands(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                yield from _operands(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield from _operands(operand)
        case ast.Compare(left=left, comparators=comparators):
            yield from (side for side in (left, *comparators) if not _is_constant(side))
        case ast.Call(func=ast.Name(id="all" | "any"), args=[ast.GeneratorExp() as each]):
            yield ast.copy_location(ast.ListComp(each.elt, each.generators), each)
        case ast.Call() | ast.Name() | ast.Attribute() | ast.Subscript():
            yield node


def _is_constant(node: ast.expr) -> bool:
    return all(
        isinstance(part, (ast.Constant, ast.Dict, ast.List, ast.Set, ast.Tuple, ast.Load)) for part in ast.walk(node)
    )


def _names(condition: Callable[[], Any]) -> dict[str, Any]:
    """Every name that the condition can see, with its value."""
    function: Any = condition
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    defaults = zip(function.__code__.co_varnames, function.__defaults__ or (), strict=False)
    return {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}, **dict(defaults)}
