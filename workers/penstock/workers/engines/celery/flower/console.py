"""`Console`: Flower's application, with the pages of the console in front of its own."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from flower.app import Flower, rewrite_handler
from flower.urls import settings as flower_settings
from tornado.template import Loader, Template
from tornado.web import RequestHandler, StaticFileHandler, url

from penstock.workers.engines.celery.flower.access.identity import Identity
from penstock.workers.engines.celery.flower.access.people import Person, Role
from penstock.workers.engines.celery.flower.live import Live
from penstock.workers.engines.celery.flower.page import API, Act, Download, Handler, Page
from penstock.workers.engines.celery.flower.pages import HANDLERS
from penstock.workers.engines.celery.flower.services import Services
from penstock.workers.engines.celery.flower.wording import UI_METHODS, escape, href

_FOLDER = Path(__file__).parent
TEMPLATES, STATIC = _FOLDER / "templates", _FOLDER / "static"
TABS = (
    ("overview", "Overview"),
    ("jobs", "Jobs"),
    ("deadletters", "Dead letters"),
    ("workflows", "Workflows"),
    ("schedules", "Schedules"),
    ("queues", "Queues"),
    ("kinds", "Kinds"),
    ("workers", "Workers"),
)
"""Path and label of each entry of the navigation, in order."""
FURTHER_TABS = (
    ("limits", "Limits"),
    ("outboxes", "Outboxes"),
    ("alerts", "Alerts"),
    ("audit", "Audit"),
    ("settings", "Settings"),
)
"""Those in the menu at its end."""


class Console(Flower):  # type: ignore[misc]  # Flower has no types
    """Flower's application. Tornado looks at what is added before it looks at Flower's own routes.

    Arguments:
        services: closed by the caller.
        identity: finds out who asks.
        further: Flower's own; see `flower.app.Flower`.
    """

    def __init__(self, services: Services, identity: Identity, **further: Any) -> None:
        self.services, self.identity = services, identity
        settings = {
            **flower_settings,
            "xsrf_cookie_kwargs": {"samesite": "Strict"},
            "template_loader": Templates(flower_settings["template_path"]),
            "ui_methods": {
                **UI_METHODS,
                "asset": asset,
                "can": can,
                "tabs": tabs,
                "further_tabs": further_tabs,
                "person": person,
            },
        }
        super().__init__(**settings, **further)
        self.add_routes([route for handler in (*HANDLERS, Live) for route in _routes(handler)])
        self.add_routes([(r"/assets/(.*)", StaticFileHandler, {"path": str(STATIC)})])
        self._pages = {handler.path: handler for handler in HANDLERS if issubclass(handler, Page)}

    def add_routes(self, routes: list[Any]) -> None:
        """Put routes, below Flower's prefix, in front of Flower's own and behind those that were added before."""
        result = [route if isinstance(route, url) else url(*route) for route in routes]
        prefix = self.options.url_prefix
        self.add_handlers(r".*", [rewrite_handler(route, prefix) for route in result] if prefix else result)

    def has_page(self, path: str) -> bool:
        return f"/{path}" in self._pages

    def may_open(self, path: str, person: Person | None) -> bool:
        """Whether a page of ours exists for someone with this role and these bounds; None: someone without a login."""
        page = self._pages[f"/{path}"]
        if person is None:
            return page.role is Role.VIEWER
        return person.may(page.role) and not (page.needs_whole_scope and person.scope.is_bounded)


class Templates(Loader):
    """Looks for a template in our folder first, then in Flower's. Names are from those folders, not relative."""

    def __init__(self, theirs: str) -> None:
        super().__init__(theirs, autoescape="escape", namespace={"escape": escape, "Role": Role})

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATES / name
        file = ours if ours.is_file() else Path(self.root, name)
        return Template(file.read_bytes(), name=name, loader=self)


def can(handler: RequestHandler, role: Role, *, about: Literal["part", "tenants", "all"] = "part") -> bool:
    """Whether the person may do what needs this role.

    Arguments:
        about: whose jobs the act concerns: `tenants`, those of all tenants; `all`, those of the whole installation.
    """
    asking = person(handler)
    if asking is None or not asking.may(role):
        return False
    return about == "part" or not (asking.scope.is_bounded if about == "all" else asking.scope.tenants is not None)


def person(handler: Any) -> Person | None:
    """The person who looks at the page; None on the pages of errors before a login."""
    return getattr(handler, "person", None)


def tabs(handler: Any) -> list[tuple[str, str]]:
    """The entries of the navigation, without pages that do not exist for the person."""
    return _open(handler, TABS)


def further_tabs(handler: Any) -> list[tuple[str, str]]:
    """The entries of the menu at its end, likewise."""
    return _open(handler, FURTHER_TABS)


def _open(handler: Any, entries: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(path, label) for path, label in entries if handler.application.may_open(path, person(handler))]


def asset(handler: RequestHandler, name: str) -> str:
    """The address of a file of ours, which changes with its content."""
    return href(handler, f"assets/{name}", v=_digest(name))


@lru_cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def _routes(handler: type[Handler]) -> list[Any]:
    if issubclass(handler, Page):
        return [
            url(handler.path, handler, {"is_json": False}, name=handler.name),
            url(API + handler.path, handler, {"is_json": True}),
        ]
    if not issubclass(handler, Act | Download | Live):
        raise TypeError(f"{handler.__name__} is neither a Page nor an Act nor a Download")
    return [url(API + handler.path, handler)]
