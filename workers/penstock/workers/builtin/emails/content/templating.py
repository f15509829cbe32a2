"""Templates of mails: Jinja2, sandboxed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config.settings import Settings
from penstock.workers.handlers.resources import provides
from penstock.workers.handlers.returns import Permanent

SHIPPED = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True, slots=True)
class Content:
    subject: str
    text: str | None
    html: str | None


class Templates:
    """`NAME.subject.txt`, `NAME.txt` and `NAME.html`, looked for in the user's folder, then among the shipped ones."""

    def __init__(self, folder: str | None = None) -> None:
        from jinja2 import (
            ChoiceLoader,
            FileSystemLoader,
            StrictUndefined,
        )  # imported lazily: only workers that send mail need it
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        folders = [SHIPPED] if folder is None else [Path(folder).absolute(), SHIPPED]
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([FileSystemLoader(each) for each in folders]),
            autoescape=lambda name: name is not None and name.endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, variables: dict[str, Any], locale: str | None = None) -> Content:
        """Fill a template.

        Arguments:
            locale: `de-AT` takes all parts from the folder `de-AT`, else from `de`, else from those without a folder.
                Templates have it as `locale`, unless a variable has that name.

        Raises:
            Permanent: there is none, it is broken, or a variable is missing; names it.
        """
        variables = {"locale": locale, **variables}
        for folder in _folders(locale):
            subject = self._part(f"{folder}{name}.subject.txt", variables)
            if subject is not None:
                break
        text, html = self._part(f"{folder}{name}.txt", variables), self._part(f"{folder}{name}.html", variables)
        if subject is None or (text is None and html is None):
            raise Permanent(
                f"email template {name!r} needs {folder}{name}.subject.txt, and {folder}{name}.txt or "
                f"{folder}{name}.html"
            )
        # A variable with line breaks must not begin another header.
        return Content(" ".join(subject.split()), text, html)

    def _part(self, file: str, variables: dict[str, Any]) -> str | None:
        from jinja2 import TemplateNotFound

        try:
            template = self._environment.get_template(file)
        except TemplateNotFound:
            return None
        except Exception as error:
            raise Permanent(f"email template {file}: {error}") from error
        try:
            return template.render(variables)
        except TemplateNotFound as error:
            raise Permanent(f"email template {file}: {error.name!r}, which it includes, is missing") from error
        except Exception as error:  # a template can fail like any code, and will again with the same variables
            raise Permanent(f"email template {file}: {error}") from error


def _folders(locale: str | None) -> list[str]:
    """`de-AT` → `de-AT/`, `de/` and none."""
    parts = locale.split("-") if locale else []
    return ["-".join(parts[:count]) + "/" for count in range(len(parts), 0, -1)] + [""]


@provides
def open_templates(settings: Settings) -> Iterator[Templates]:
    yield Templates(settings.emails.templates)
