"""The module: its imports, and a job class and a handler for each task."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.config.errors import KindError
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines.typed.declaration import TASK, Declaration
from penstock.workers.engines.typed.fields import JobField, fields_of, hints_of, write_result
from penstock.workers.engines.typed.layout import WIDTH, Group, Node, call, comment, lay_out, text_of, with_prefix
from penstock.workers.engines.typed.names import Names, class_and_function_names
from penstock.workers.engines.typed.values import Unwritable, write_seconds, write_value

_ALWAYS = {"penstock.schemas": "Job", "penstock.workers": "handles"}
"""The imports of each such module."""
_SET_FIELDS = "_set_fields"
_SET_FIELDS_LINES = f'''
def {_SET_FIELDS}(job: Job, *names: str) -> dict[str, Any]:
    """Fields that are set. For the others the task has a default of its own."""
    values = {{name: getattr(job, name) for name in names}}
    return {{name: value for name, value in values.items() if value is not None}}
'''


@dataclass(frozen=True, slots=True)
class Access:
    """The way from the written module to the tasks.

    Attributes:
        imports: module, attribute and name here of what `code` needs.
        reserved: names that `code` defines.
        code: lines after the imports.
    """

    imports: Sequence[tuple[str, str, str]] = ()
    reserved: Sequence[str] = ()
    code: str = ""


@dataclass(slots=True)
class Module:
    """A written module.

    Attributes:
        text: its source.
        left_out: a line for each task that cannot be a kind.
    """

    text: str
    left_out: list[str] = field(default_factory=list)


def write_module(title: str, declarations: Sequence[Declaration], access: Access) -> Module:
    """Write the module of these tasks.

    Arguments:
        title: its docstring.
    """
    parameters = {name for declaration in declarations for name in declaration.signature.parameters}
    # A field must not hide the class in its own annotation, nor a handler's variable the module's names.
    names = Names({*access.reserved, *parameters, _SET_FIELDS, "job", "ctx", "task", "result"} - {*_ALWAYS.values()})
    for module, attribute in _ALWAYS.items():
        names.imported(module, attribute)
    for module, attribute, alias in access.imports:
        names.imported(module, attribute, alias)
    problems = {declaration.name: refusal_of(declaration) for declaration in declarations}
    kept = [declaration for declaration in declarations if problems[declaration.name] is None]
    if access.code:
        names.imported("typing", "Any")
    chosen = class_and_function_names([declaration.name for declaration in kept], names)
    parts = ["\n".join(_Task(declaration, *chosen[declaration.name], names).lines()) for declaration in kept]
    left_out = [f"{name}: {problem}" for name, problem in problems.items() if problem is not None]
    if any(_SET_FIELDS in part for part in parts):
        names.imported("typing", "Any")
        parts.insert(0, _SET_FIELDS_LINES.strip("\n"))
    head = [*_docstring(title), "", *names.import_lines()]
    if access.code:
        head += ["", access.code.strip("\n")]
    if left_out:
        parts.append("\n".join(line for reason in left_out for line in comment(f"Left out: {reason}")))
    return Module("\n\n\n".join(["\n".join(head), *parts]) + "\n", left_out)


def refusal_of(declaration: Declaration) -> str | None:
    """Why no kind can have the name or the queue of a task; None: one can."""
    try:
        job: Any = types.new_class("Probe", (Job,), {"kind": declaration.name, "queue": declaration.queue})
    except KindError as error:
        return str(error).rpartition("Probe: ")[2]
    registry.discard(job.kind())
    return None


class _Task:
    """A job class and a handler."""

    def __init__(self, declaration: Declaration, class_name: str, function_name: str, names: Names) -> None:
        self._declaration, self._names = declaration, names
        self._class, self._function = class_name, function_name
        self._hints = hints_of(declaration.function)
        self._comments = list(declaration.comments)

    def lines(self) -> Iterator[str]:
        fields = list(fields_of(self._declaration.signature, self._hints, self._names))
        keywords = self._keywords(any(each.is_renamed for each in fields))
        yield from lay_out(Group(f"class {self._class}(", ["Job", *keywords], "):"))
        body = [*self._docstring(), *(line for each in fields for line in each.lines)]
        yield from body or ["    pass"]
        yield ""
        yield ""
        yield from self._handler(fields)

    def _docstring(self) -> list[str]:
        first = (self._declaration.doc or "").strip().partition("\n")[0].strip()
        line = f'    """{first}"""'
        simple = first and '"' not in first and "\\" not in first and len(line) <= WIDTH
        return [line, ""] if simple and self._declaration.signature.parameters else [line] if simple else []

    def _keywords(self, has_aliases: bool) -> Iterator[Node]:
        declared = self._declaration
        yield f"kind={text_of(declared.name)}"
        yield f"queue={text_of(declared.queue)}"
        yield from self._keyword("retry", declared.retry)
        for name in ("timeout", "soft_timeout", "expires_in"):
            if (duration := getattr(declared, name)) is not None:
                yield f"{name}={write_seconds(duration)}"
        if declared.priority is not None:
            yield f"priority={text_of(declared.priority)}"
        if declared.limits:
            rates = [self._rate(rate.most, rate.seconds) for rate in declared.limits]
            yield Group("limits=(", rates, ",)" if len(rates) == 1 else ")")
        if has_aliases:
            yield "populate_by_name=True"

    def _keyword(self, name: str, value: Any) -> Iterator[Node]:
        if value is None:
            return
        try:
            with self._names.undone_on_errors():
                yield with_prefix(f"{name}=", write_value(value, self._names))
        except Unwritable as error:
            self._comments.append(f"The {name} of the task is left out: {error}.")

    def _rate(self, most: int, seconds: float) -> Node:
        rate = self._names.imported("penstock.schemas", "Rate")
        return call(rate, str(most), per=repr(int(seconds) if seconds == int(seconds) else seconds))

    def _handler(self, fields: Sequence[JobField]) -> Iterator[str]:
        declared, names = self._declaration, self._names
        result = "None" if not declared.keeps_result else write_result(self._result_hint, names)
        parameters = [f"job: {self._class}"]
        if declared.before or declared.after:
            parameters.append(f"ctx: {names.imported('penstock.workers', 'Context')}")
        yield f"@handles({self._class})"
        start = "async def" if declared.is_async else "def"
        yield from lay_out(Group(f"{start} {self._function}(", parameters, f") -> {result}:"))
        for text in self._comments:
            yield from comment(text, "    ")
        yield from (f"    {line}" for line in declared.before)
        indent = "        " if declared.after else "    "
        if declared.after:
            yield "    try:"
        work = self._call(fields)
        if result in ("None", "Any") or result == names.imported("typing", "Any"):
            yield from lay_out(work if result == "None" else with_prefix("return ", work), indent)
        else:
            yield from lay_out(with_prefix(f"result: {result} = ", work), indent)
            yield f"{indent}return result"
        if declared.after:
            yield "    finally:"
            yield from (f"        {line}" for line in declared.after)

    @property
    def _result_hint(self) -> Any:
        return self._hints.get("return", self._declaration.signature.empty)

    def _call(self, fields: Sequence[JobField]) -> Node:
        declared = self._declaration
        code = declared.call
        if declared.task is not None:
            code = code.replace(TASK, self._names.imported(*declared.task))
        arguments = [each.argument for each in fields if not each.is_optional]
        optional = [text_of(each.argument) for each in fields if each.is_optional]
        if optional:
            arguments.append(str(call(f"**{_SET_FIELDS}", "job", *optional)))
        return call(f"await {code}" if declared.is_async else code, *arguments)


def _docstring(title: str) -> list[str]:
    first, *rest = title.split("\n\n")
    if not rest:
        return [f'"""{first}"""']
    lines = [f'"""{first}']
    for paragraph in rest:
        lines += ["", *textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False, break_long_words=False)]
    return [*lines, '"""']
