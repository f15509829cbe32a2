"""HTML of mails: its styles inlined, and its text."""

from __future__ import annotations

import re

from penstock.workers.handlers.returns import Permanent

CID = re.compile(r"""\bcid:([^\s"'<>)]+)""", re.IGNORECASE)
"""Reference to an attachment inside the mail (RFC 2392)."""


def inline_css(html: str) -> str:
    """The HTML with the rules of its `<style>` elements in its elements. Nothing is loaded from elsewhere.

    Raises:
        Permanent: the styles cannot be read.
    """
    if "<style" not in html.lower():
        return html
    import css_inline  # late: only mails with styles need it

    try:
        return css_inline.inline(html, keep_at_rules=True, load_remote_stylesheets=False)
    except css_inline.InlineError as error:
        raise Permanent(
            f"the styles of the HTML cannot be inlined: {error}; inline_css of [emails] may be false"
        ) from error


def text_of(html: str) -> str:
    """The text of the HTML, links as `[text](address)`."""
    from inscriptis import get_text  # late: it loads lxml, and only mails without a text need it
    from inscriptis.model.config import ParserConfig

    lines = get_text(html, ParserConfig(display_links=True)).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"
