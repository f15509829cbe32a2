"""`pages` of `[syncs.NAME]`: how an API divides its records into pages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from penstock.config.sections.builtin.section import Section

PageStyle = Literal["auto", "cursor", "url", "link", "page", "offset", "last_id", "single"]

_PARAMS = {"page": "page", "offset": "offset", "last_id": "starting_after"}


class PagesSettings(Section):
    """`pages = "link"`, or `pages = { style = "page", param = "p", total = "meta.pages" }`.

    A page that this reads as the last one, although the answer has signs of more pages (`has_more`, a total, a `Link`
    header), fails the run: half of the records must not look like success.
    """

    style: PageStyle = "auto"
    """`auto`: the value at `next_cursor`, else a `Link` header; the run says which. `cursor`: the value at
    `next_cursor` goes into `cursor_param`. `url`: the value at `next_cursor` is a URL, perhaps a relative one. `link`:
    `rel="next"` of the `Link` header (RFC 8288). `page`: numbers, until a page is empty. `offset`: records so far,
    until a page is empty. `last_id`: the id of the last record, until a page is empty. `single`: a single page."""
    param: str | None = Field(default=None, min_length=1)
    """Parameter of the page's number, the offset or the last id. None: `page`, `offset`, `starting_after`. With `POST`,
    a path into the body."""
    first: int = Field(default=1, ge=0)
    """Number of the first page; for the style `page`."""
    header: str | None = Field(default=None, min_length=1)
    """Header of the answer with the next page's cursor, in place of the path `next_cursor`; for the style `cursor`."""
    more: str | None = Field(default=None, min_length=1)
    """Path of true or false: whether more pages follow. None: the end is as the style says."""
    total: str | None = Field(default=None, min_length=1)
    """Path of the number of pages (style `page`) or of all records (style `offset`). None: the end is an empty page."""
    ignore: tuple[str, ...] = ()
    """Names of fields and headers that look like signs of more pages and are none."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"style": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> PagesSettings:
        allowed = {
            "param": ("page", "offset", "last_id"),
            "first": ("page",),
            "header": ("cursor",),
            "total": ("page", "offset"),
            "more": ("cursor", "url", "page", "offset", "last_id"),
        }
        for name in sorted(self.model_fields_set & allowed.keys()):
            if self.style not in allowed[name]:
                raise ValueError(f"{name} is for the style {' or '.join(allowed[name])}, and the style is {self.style}")
        return self

    @property
    def parameter(self) -> str:
        """Parameter of a style that counts, with its default."""
        return self.param or _PARAMS[self.style]
