"""`/settings`: what is in force, and where it comes from."""

from __future__ import annotations

import json
from typing import Any

from penstock.config.settings import settings_in_force
from penstock.workers.engines.celery.flower.access.people import Role
from penstock.workers.engines.celery.flower.page import Page, Parameters, plain


class Settings(Page):
    path, name, tab, title = r"/settings", "settings", "settings", "Settings"
    template = "house/settings.html"
    role, needs_whole_scope = Role.ADMIN, True

    class Query(Parameters):
        changed: bool = False
        name: str | None = None

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        settings = [
            setting._asdict()
            for setting in settings_in_force(self.settings_of_penstock)
            if (not query.changed or setting.source != "default") and (query.name or "") in setting.name
        ]
        return {"settings": settings}

    def get_template_namespace(self) -> dict[str, Any]:
        return {**super().get_template_namespace(), "shown": _shown}


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, default=plain, ensure_ascii=False)


HANDLERS = (Settings,)
