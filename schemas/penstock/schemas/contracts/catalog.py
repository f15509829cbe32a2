"""The catalog: a page, in Markdown or HTML, of all kinds of an export."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from penstock.schemas.contracts.export import Described

_TITLE = "Kinds of jobs"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ border: 1px solid #8884; padding: .3rem .6rem; text-align: left }}
</style></head>
<body>
{body}</body></html>
"""


def markdown(kinds: Mapping[str, Described]) -> str:
    """A table of all kinds, then each with its fields and what is declared with them."""
    return "\n".join(_lines(kinds)) + "\n"


def page(kinds: Mapping[str, Described]) -> str:
    """The Markdown page as one HTML file. Needs `penstock[cli]`."""
    from markdown_it import MarkdownIt

    return _PAGE.format(
        title=_TITLE, body=MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(kinds))
    )


def _lines(kinds: Mapping[str, Described]) -> Iterator[str]:
    yield f"# {_TITLE}"
    yield ""
    yield from _table(("kind", "version", "queue", "what for"), (_overview(name, kind) for name, kind in kinds.items()))
    for name, kind in kinds.items():
        yield ""
        yield f"## {_code(name)}"
        if kind["description"]:
            yield ""
            yield _plain(kind["description"])
        yield ""
        yield "; ".join(_declared(kind)) + "."
        yield ""
        yield from _fields(kind)


def _overview(name: str, kind: Described) -> tuple[str, ...]:
    first = kind["description"].split("\n\n")[0]
    return _code(name), str(kind["version"]), _code(kind["queue"]), _plain(" ".join(first.split()))


def _declared(kind: Described) -> Iterator[str]:
    yield f"Queue {_code(kind['queue'])}, version {kind['version']}"
    yield f"priority {kind['priority']}, delivery {kind['delivery']}"
    yield f"up to {kind['max_attempts']} attempts" if kind["max_attempts"] > 1 else "one attempt"
    if kind["timeout_seconds"] is not None:
        yield f"each for {_duration(kind['timeout_seconds'])} at most"
    if kind["expires_in_seconds"] is not None:
        yield f"discarded if it waits for more than {_duration(kind['expires_in_seconds'])}"
    if kind["unique"] is not None:
        yield f"unique ({kind['unique']}) by {', '.join(map(_code, kind['unique_by'])) or 'its kind'}"
    elif kind["unique_by"]:
        yield f"its key is made of {', '.join(map(_code, kind['unique_by']))}"
    if kind["aliases"]:
        yield f"formerly {', '.join(map(_code, kind['aliases']))}"
    if not kind["track"]:
        yield "only failures are kept"


def _fields(kind: Described) -> Iterator[str]:
    schema = kind["schema"]
    if not (fields := schema.get("properties")):
        yield "No fields."
        return
    rows = []
    for name, field in fields.items():
        about = field.get("description", "")
        if name in kind["sensitive"]:
            about = f"Sensitive. {about}".strip()
        needed = "required" if name in schema.get("required", ()) else _default(field)
        rows.append((_code(name), _type(field, schema), needed, _plain(" ".join(about.split()))))
    yield from _table(("field", "type", "default", "meaning"), rows)
    for name, part in schema.get("$defs", {}).items():
        if "properties" in part:
            yield ""
            yield f"{_code(name)}:"
            yield ""
            yield from _fields({"schema": part, "sensitive": ()})


def _default(field: Mapping[str, Any]) -> str:
    return _code(json.dumps(field["default"], ensure_ascii=False)) if "default" in field else "made when sent"


def _type(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    if reference := field.get("$ref"):
        name = reference.rpartition("/")[2]
        part = root.get("$defs", {}).get(name, {})
        return _type(part, root) if "enum" in part or "const" in part else _code(name)
    if union := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(member, root) for member in union))
    if "const" in field or "enum" in field:
        return " or ".join(_code(json.dumps(value)) for value in field.get("enum", [field.get("const")]))
    name = str(field.get("type", "anything"))
    if name == "array" and isinstance(field.get("items"), Mapping):
        name += f" of {_type(field['items'], root)}"
    elif name == "array" and "prefixItems" in field:
        name += f" of {', '.join(_type(item, root) for item in field['prefixItems'])}"
    elif name == "object" and isinstance(field.get("additionalProperties"), Mapping):
        name += f" of {_type(field['additionalProperties'], root)}"
    if "format" in field:
        name += f" ({field['format']})"
    limits = [f"{words} {field[key]}" for key, words in _LIMITS.items() if key in field]
    if "pattern" in field:
        limits.append(f"matching {_code(field['pattern'])}")
    return ", ".join([name, *limits])


_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "multipleOf": "a multiple of",
    "minLength": "length at least",
    "maxLength": "length at most",
    "minItems": "items at least",
    "maxItems": "items at most",
}


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=seconds)) if seconds >= 60 else f"{seconds:g} s"


def _table(columns: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def _plain(text: str) -> str:
    """Escape text for Markdown, so that nothing in it is a tag."""
    return html.escape(text, quote=False)
