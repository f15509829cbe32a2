"""`/search`: from an id, the beginning of one, a key or a tenant to its page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from penstock.config.errors import AmbiguousId, JobNotFound
from penstock.ledger.queries.jobs import JobFilter, find_page, full_id
from penstock.workers.engines.celery.flower.page import Page, Parameters
from penstock.workers.engines.celery.flower.wording import href


class Search(Page):
    path, name, title, template = r"/search", "search", "Search", "house/search.html"

    class Query(Parameters):
        q: str = ""

    def render(self, template_name: str, **values: Any) -> Any:
        """Lead to what was found; without it show the page."""
        if values.get("leads_to") is not None:
            self.redirect(values["leads_to"])
            return None
        return super().render(template_name, **values)

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        return {"leads_to": self._find(query.q) if query.q else None}

    def _find(self, text: str) -> str | None:
        scope = self.person.scope
        try:
            return href(self, f"jobs/{quote(full_id(self.ledger, text, scope=scope), safe='')}")
        except AmbiguousId:
            return href(self, "jobs", id=text)
        except JobNotFound:
            pass
        for name, filter in (
            ("key", JobFilter(key=text, scope=scope)),
            ("tenant", JobFilter(tenant=text, scope=scope)),
        ):
            rows = find_page(self.ledger, filter, limit=2).rows
            if name == "key" and len(rows) == 1:
                return href(self, f"jobs/{quote(rows[0].id, safe='')}")
            if rows:
                return href(self, "jobs", **{name: text})
        return None


HANDLERS = (Search,)
