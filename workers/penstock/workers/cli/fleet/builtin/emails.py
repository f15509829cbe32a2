"""`penstock emails`."""

from __future__ import annotations

import tempfile
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, parse_json
from penstock.workers.cli.common.output import echo, print_json
from penstock.workers.cli.common.session import open_settings

app = typer.Typer(no_args_is_help=True, help="See mails before they are sent.")


@app.callback()
def emails() -> None:
    """See mails before they are sent."""


@app.command()
def preview(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The template, such as welcome or orders/shipped.")],
    variables: Annotated[str, typer.Option(metavar="JSON", help="Its variables, as an object; - reads them.")] = "{}",
    locale: Annotated[str | None, typer.Option(help="Its language, such as de-AT.")] = None,
    open_html: Annotated[bool, typer.Option("--open", help="Show the HTML in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill a template and print it as it would be sent: its styles inlined, its text made from the HTML."""
    from penstock.schemas.builtin.emails import SendEmail
    from penstock.workers.builtin.emails.content.message import content_of
    from penstock.workers.builtin.emails.content.templating import Templates
    from penstock.workers.handlers.returns import Permanent

    fields: dict[str, Any] = {"to": "preview@example.com", "template": name, "locale": locale}
    try:
        job = SendEmail(**fields, variables=parse_json(variables, "--variables", or_stdin=True))
    except ValidationError as error:
        raise typer.BadParameter("; ".join(f"{_field_name(line)}: {line['msg']}" for line in error.errors())) from None
    settings = open_settings().emails
    try:
        content = content_of(job, Templates(settings.templates), settings)
    except Permanent as error:
        echo(str(error), err=True)
        raise typer.Exit(FAILED) from None
    if as_json:
        print_json({"subject": content.subject, "text": content.text, "html": content.html})
    else:
        echo(f"Subject: {content.subject}")
        echo()
        echo(content.text or content.html or "", lines=True)
    if open_html:
        _show(content.html)


def _field_name(line: Any) -> str:
    return ".".join(map(str, line["loc"])) or "the mail"


def _show(html: str | None) -> None:
    import webbrowser
    from pathlib import Path

    if html is None:
        echo("the template has no HTML to open", err=True)
        raise typer.Exit(FAILED)
    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="penstock-", delete=False, encoding="utf-8") as file:
        file.write(html)
    if not webbrowser.open(Path(file.name).as_uri()):
        echo(f"no browser opens; the HTML is in {file.name}", err=True)
