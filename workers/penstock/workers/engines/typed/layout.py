"""Layout of written Python: what fits on a line stays on it, else a line for each item, as ruff lays code out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 88
"""The longest line, ruff's own default: what is broken for it stays so where lines may be longer."""
_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Group:
    """Items between brackets.

    Attributes:
        opening, closing: the brackets, with what is before and after them.
    """

    opening: str
    items: Sequence[Node]
    closing: str

    def __str__(self) -> str:
        return f"{self.opening}{', '.join(map(str, self.items))}{self.closing}"


Node = str | Group


def lay_out(node: Node, indent: str = "", end: str = "") -> Iterator[str]:
    """Lines of a node.

    Arguments:
        end: what follows on its last line.
    """
    line = f"{indent}{node}{end}"
    if isinstance(node, str) or len(line) <= WIDTH or not node.items:
        yield line
        return
    yield f"{indent}{node.opening}"
    for item in node.items:
        yield from lay_out(item, indent + _INDENT, ",")
    yield f"{indent}{node.closing}{end}"


def comment(text: str, indent: str = "") -> list[str]:
    """Lines of a comment."""
    start = f"{indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def text_of(value: str) -> str:
    """A string as Python, in the quotes that ruff prefers: double ones, unless these need more escapes."""
    plain = repr(f"{value}'\"")[1:-4].replace("\\'", "'")  # with both quotes in it, repr escapes the single ones
    quote = "'" if value.count('"') > value.count("'") else '"'
    return f"{quote}{plain.replace(quote, f'{chr(92)}{quote}')}{quote}"


def with_prefix(prefix: str, node: Node) -> Node:
    """A node with something before it, such as `name=`."""
    return f"{prefix}{node}" if isinstance(node, str) else Group(f"{prefix}{node.opening}", node.items, node.closing)


def call(function: str, *arguments: Node | None, **keywords: Any) -> Group:
    """A call. Arguments and keywords that are None are left out."""
    named = [with_prefix(f"{name}=", value) for name, value in keywords.items() if value is not None]
    return Group(f"{function}(", [*(argument for argument in arguments if argument is not None), *named], ")")
