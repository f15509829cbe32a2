"""The person of a request: by a trusted proxy's header, a name with a password, or the cookie of OAuth."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flower.utils.authentication import authenticate
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from penstock.config.printable import printable
from penstock.config.sections.console import ConsoleSettings
from penstock.config.sections.values import listed
from penstock.config.settings import Settings
from penstock.workers.engines.celery.flower.access.logins import Logins, TooManyFailures
from penstock.workers.engines.celery.flower.access.people import Person, Role

_LONGEST_NAME = 200


class Identity:
    """The ways from a request to its person.

    Arguments:
        logins: `name:password` of the environment.
        oauth: Flower's pattern of addresses that may log in by OAuth (`FLOWER_AUTH`); empty: without OAuth.
        read_only: everyone is a viewer.
    """

    def __init__(self, settings: Settings, logins: Sequence[str], *, oauth: str = "", read_only: bool = False) -> None:
        self._console: ConsoleSettings = settings.console
        self._admins = settings.flower_admins
        self._oauth, self._read_only = oauth, read_only
        plain = {login: Person(name := login.partition(":")[0], self._older_role(name)) for login in logins}
        self._logins = Logins(settings.console, plain)

    @property
    def asks_for_password(self) -> bool:
        return self._logins.exist

    @property
    def proxy_header(self) -> str | None:
        return self._console.proxy_header

    @property
    def has_oauth(self) -> bool:
        return bool(self._oauth)

    def reads_only(self, person: Person) -> bool:
        """Whether Flower's pages of workers have no buttons for this person."""
        return not person.may(Role.OPERATOR) or person.scope.is_bounded

    async def person(self, handler: RequestHandler) -> Person | None:
        """The person who asks; None: the request has no login.

        Raises:
            HTTPError: 401, the login is wrong; 403, the person has no role, or names itself in the proxy's header;
                429, there were too many wrong logins.
        """
        person = await self._find(handler)
        return replace(person, role=Role.VIEWER) if person is not None and self._read_only else person

    async def _find(self, handler: RequestHandler) -> Person | None:
        request = handler.request
        if self._console.proxy_header and self._console.proxy_header in request.headers:
            return self._of_proxy(request)
        if (person := await self._of_password(handler)) is not None:
            return person
        return self._of_oauth(handler)

    def _of_proxy(self, request: HTTPServerRequest) -> Person:
        header = self._console.proxy_header or ""
        if not self._console.trusts(peer_of(request)):
            raise HTTPError(403, f"{header} is accepted from the proxy's address only; see proxies of [console]")
        name = _single_value(request, header)
        groups_header = self._console.groups_header
        groups = _single_value(request, groups_header) if groups_header and groups_header in request.headers else ""
        return self._named(name, tuple(listed(groups)))

    async def _of_password(self, handler: RequestHandler) -> Person | None:
        scheme, _, credentials = handler.request.headers.get("Authorization", "").partition(" ")
        if not self._logins.exist or not scheme or (self._oauth and scheme.lower() != "basic"):
            return None
        try:
            name, colon, password = b64decode(credentials.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise HTTPError(401) from None
        if scheme.lower() != "basic" or not colon or len(name) > _LONGEST_NAME:
            raise HTTPError(401)
        try:
            person = await self._logins.person(name, password, handler.request.remote_ip or "")
        except TooManyFailures as error:
            handler.set_header("Retry-After", str(error.retry_after))
            raise HTTPError(429, str(error)) from None
        if person is None:
            raise HTTPError(401)
        return person

    def _of_oauth(self, handler: RequestHandler) -> Person | None:
        cookie: Any = handler.get_signed_cookie("user") if self._oauth else None
        if not cookie:
            return None
        address = cookie.decode()
        if not authenticate(self._oauth, address):
            return None
        if self._console.roles or self._console.user(address) is not None:
            return self._named(address)
        return Person(address, self._older_role(address))

    def _named(self, name: str, groups: tuple[str, ...] = ()) -> Person:
        """The person of a name that a proxy or OAuth vouches for. Raises HTTPError: 403, it has no role."""
        user, role = self._console.user(name), self._console.role_of(name, groups)
        if user is not None:
            return Person.of(user, role and Role.named(role))
        if role is None:
            raise HTTPError(403, f"{_shown(name)} is logged in, but has no role here: see [console.roles]")
        return Person(name, Role.named(role))

    def _older_role(self, name: str) -> Role:
        """By `flower_admins`."""
        return Role.ADMIN if self._admins is None or name in self._admins else Role.VIEWER


def peer_of(request: HTTPServerRequest) -> str:
    """The address that the connection comes from, whatever headers say; empty: it is a socket of the file system."""
    address = getattr(getattr(request.connection, "context", None), "address", None)
    return str(address[0]) if isinstance(address, tuple) else ""


def _single_value(request: HTTPServerRequest, header: str) -> str:
    """The header's value. Raises HTTPError: 403, it is there twice, empty, or no name."""
    values = request.headers.get_list(header)
    value = values[0].strip() if len(values) == 1 else ""
    if not value or len(value) > _LONGEST_NAME * 10 or not value.isprintable():
        raise HTTPError(403, f"{header} must be there once, with a value")
    return value


def _shown(name: str) -> str:
    return printable(name)[:_LONGEST_NAME].replace("%", "%%")
