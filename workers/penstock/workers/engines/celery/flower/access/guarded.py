"""`Guarded`: in front of every page and act, ours and Flower's own: who asks, from where, and with which role."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, ClassVar

from flower.api import BaseApiHandler
from tornado.httputil import url_concat
from tornado.web import HTTPError, RequestHandler

from penstock.config.printable import printable
from penstock.workers.engines.celery.flower.access.csrf import check_origin
from penstock.workers.engines.celery.flower.access.identity import Identity
from penstock.workers.engines.celery.flower.access.people import Person, Role

log = logging.getLogger("penstock.flower")


class Guarded(RequestHandler):
    """Put before a handler of Flower's, it admits those who have a login and the role.

    Attributes:
        role: the least role that may do this.
        person: who asks; there once `prepare` has let the request in.
    """

    role: ClassVar[Role] = Role.VIEWER
    person: Person

    @property
    def identity(self) -> Identity:
        return self.application.identity  # type: ignore[attr-defined, no-any-return]

    @property
    def is_page(self) -> bool:
        """Whether it answers with HTML."""
        return not isinstance(self, BaseApiHandler)

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "same-origin")

    def check_xsrf_cookie(self) -> None:
        check_origin(self, self.identity.proxy_header)

    def get_current_user(self) -> str | None:
        """None: `prepare` sets the user, since a login may take a while to check."""
        return None

    async def prepare(self) -> None:
        person = await self.identity.person(self)
        if person is None:
            self._ask_for_login()
            return
        self.person, self.current_user = person, person.name
        self.demand(self.role)

    def demand(self, role: Role) -> None:
        """Raises HTTPError: 403, the person's role is lower."""
        if not self.person.may(role):
            self.refuse(f"{self.person.name} is {self.person.role} here, and this needs the role {role}")

    def refuse(self, reason: str) -> None:
        """Raises HTTPError: 403, with a line in the log."""
        request = f"{self.person.name} ({self.person.role}) was refused: {self.request.method} {self.request.path}"
        log.warning("%s", printable(request)[:255])
        raise HTTPError(403, printable(reason).replace("%", "%%"))

    def _ask_for_login(self) -> None:
        if self.identity.has_oauth and self.is_page and self.request.method == "GET":
            self.redirect(url_concat(self.get_login_url(), {"next": self.request.uri or "/"}))
            return
        raise HTTPError(401)

    def write_error(self, status_code: int, **details: Any) -> None:
        if not hasattr(self, "_current_user"):
            self.current_user = None
        error = details.get("exc_info", (None, None))[1]
        text = error.get_message() if isinstance(error, HTTPError) else ""
        self.set_status(status_code)
        if status_code == 401:
            if self.identity.asks_for_password:
                self.set_header("WWW-Authenticate", 'Basic realm="penstock", charset="UTF-8"')
            self.finish("Access denied")
        elif self.is_page:
            phrase = HTTPStatus(status_code).phrase
            self.render("error_page.html", status=status_code, phrase=phrase, text=text or _WORDS.get(status_code, ""))
        else:
            self.write_problem(text or HTTPStatus(status_code).phrase)

    def write_problem(self, text: str) -> None:
        """Answer a program with an error."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(text)


_WORDS = {
    403: "You may not do this.",
    404: "There is nothing at this address: it is written wrong, or what it showed is gone, or is not for you.",
    405: "This address is not for that.",
    429: "Too many wrong logins. Wait a minute.",
    500: "The console has failed; its log says why.",
    503: "The ledger or the broker does not answer.",
}
