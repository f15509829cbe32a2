"""`Page` and `Act`: what every page of the console and every button on it has in common.

A page is a function from the ledger to plain values, and a template that shows them. The same values are a JSON
document below `/api/penstock`. An act is a POST there. Both read and write in a thread, never on the loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Self, get_origin

from flower.views import BaseHandler
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from tornado.web import HTTPError

from penstock.config.errors import (
    AlertNotFound,
    AmbiguousId,
    BrokerUnavailable,
    ConfigError,
    DuplicateJob,
    InvalidJob,
    InvalidState,
    JobNotFound,
    LedgerUnavailable,
    LimitNotFound,
    PenstockError,
    QueueFull,
    ScheduleNotFound,
    WorkerNotFound,
)
from penstock.config.printable import printable
from penstock.config.settings import Settings
from penstock.ledger.members.controls import Control, in_force
from penstock.ledger.sql.database import Database
from penstock.workers.engines.celery.flower.access.guarded import Guarded
from penstock.workers.engines.celery.flower.access.people import Role
from penstock.workers.engines.celery.flower.services import Services

log = logging.getLogger("penstock.flower")

API = "/api/penstock"
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (LedgerUnavailable, 503),
    (BrokerUnavailable, 503),
    (QueueFull, 503),
    (JobNotFound, 404),
    (AmbiguousId, 404),
    (ScheduleNotFound, 404),
    (AlertNotFound, 404),
    (LimitNotFound, 404),
    (WorkerNotFound, 404),
    (DuplicateJob, 409),
    (InvalidState, 409),
    (InvalidJob, 400),
    (ConfigError, 400),
    (ValueError, 400),
)
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_LONGEST_BODY = 1024 * 1024


class Parameters(BaseModel):
    """The parameters of a page's address, or the body of an act. Unknown ones are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @classmethod
    def of(cls, texts_by_name: dict[str, list[str]]) -> Self:
        """The parameters of an address or a form, where values are texts and may be repeated. Empty ones do not count.

        Raises:
            HTTPError: 400; says which is wrong.
        """
        values: dict[str, Any] = {}
        for name, texts in texts_by_name.items():
            texts = [text for text in texts if text.strip()]
            field = cls.model_fields.get(name)
            if texts:
                many = field is not None and get_origin(field.annotation) in (list, tuple, set, frozenset)
                values[name] = texts if many else texts[-1]
        return cls.checked(values)

    @classmethod
    def checked(cls, values: Any) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise HTTPError(400, reason="Bad Request", log_message=_problems(error)) from error


def _read_edit(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f'write the fields to set as JSON, such as {{"field": 1}}: {error}') from None


Edit = Annotated[dict[str, Any] | None, BeforeValidator(_read_edit)]
"""Fields of a job to set, as a JSON object; a form has it as text."""


class Handler(Guarded, BaseHandler):  # type: ignore[misc]  # Flower has no types
    """In front of a page and of an act; see `Guarded`. Errors of the ledger and the broker become answers."""

    path: ClassVar[str]
    """Pattern of the address, below Flower's prefix; of an act, below `/api/penstock`."""
    is_json = True
    application: Any

    def initialize(self, is_json: bool = True) -> None:
        self.is_json = is_json

    @property
    def services(self) -> Services:
        services: Services = self.application.services
        return services

    @property
    def ledger(self) -> Database:
        return self.services.ledger

    @property
    def settings_of_penstock(self) -> Settings:
        return self.services.settings

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", _POLICY)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in one of the console's threads; errors of ours become answers.

        Raises:
            HTTPError: with the error's text.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.services.threads, function, *arguments)
        except (PenstockError, ValueError) as error:
            status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 400)
            raise HTTPError(status, printable(str(error))[:2000].replace("%", "%%")) from error

    def flower_argument(self, name: str, default: Any = None, **options: Any) -> Any:
        """An argument as Flower reads it, with its options `type`, `required` and `escape`. Raises HTTPError: 400."""
        handler: Any = self
        return handler.get_argument(name, default, **options)

    def get_template_namespace(self) -> dict[str, Any]:
        return {**super().get_template_namespace(), "pauses_in_force": ()}

    def query_texts(self) -> dict[str, list[str]]:
        """The parameters of the address, as text."""
        return {
            name: [value.decode("utf-8", "replace") for value in values]
            for name, values in self.request.query_arguments.items()
        }

    def need_whole_scope(self) -> None:
        """Refuse a person who may see a part alone: this is about the whole installation, and names the rest.

        Raises:
            HTTPError: 404.
        """
        if self.person.scope.is_bounded:
            raise HTTPError(404)

    def write_json(self, values: Any) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(values, default=plain, ensure_ascii=False).replace("</", "<\\/"))

    @property
    def is_page(self) -> bool:
        return not self.is_json

    def write_problem(self, text: str) -> None:
        self.write_json({"error": text})


class Page(Handler):
    """A page, at `path`, and its JSON document, at `/api/penstock` + `path`.

    Attributes:
        name: for `reverse_url`.
        tab: the entry of the navigation that is lit.
        query: the type of its parameters; a page without has none.
        needs_whole_scope: it is about the whole installation, and does not exist for people with bounds.
    """

    name: ClassVar[str]
    tab: ClassVar[str] = ""
    title: ClassVar[str] = ""
    template: ClassVar[str]
    Query: ClassVar[type[Parameters]] = Parameters
    needs_whole_scope: ClassVar[bool] = False

    async def get(self, *path_arguments: str) -> None:
        if self.needs_whole_scope:
            self.need_whole_scope()
        query = self.Query.of(self.query_texts())
        values = await self.in_thread(self.read, query, *path_arguments)
        if self.is_json:
            self.write_json(values)
        else:
            pauses = await self.in_thread(self._read_pauses)
            self.render(self.template, query=query, pauses_in_force=pauses, **values)

    def _read_pauses(self) -> list[Control]:
        """Pauses that the person may know of, for the line on top of every page."""
        return [pause for pause in in_force(self.ledger).pauses if self.person.may_see(pause)]

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        """The values of the page; called in a thread."""
        raise NotImplementedError

    def get_template_namespace(self) -> dict[str, Any]:
        return {**super().get_template_namespace(), "title": self.title, "tab": self.tab}


class Act(Handler):
    """An act, at POST `/api/penstock` + `path`, with a JSON object or a form as its body."""

    role = Role.OPERATOR
    Body: ClassVar[type[Parameters]] = Parameters

    async def post(self, *path_arguments: str) -> None:
        body = self.Body.checked(self._json()) if self._has_json() else self.Body.of(self._form())
        self.write_json(await self.in_thread(self.do, body, *path_arguments))

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        """Do it, and return its values; `message` is shown to the person. Called in a thread."""
        raise NotImplementedError

    def _has_json(self) -> bool:
        content: str = self.request.headers.get("Content-Type", "")
        return content.split(";")[0].strip() == "application/json"

    def _json(self) -> Any:
        if len(self.request.body) > _LONGEST_BODY:
            raise HTTPError(413)
        try:
            return json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise HTTPError(400, f"the body is not JSON: {error}") from error

    def _form(self) -> dict[str, list[str]]:
        return {
            name: [value.decode("utf-8", "replace") for value in values]
            for name, values in self.request.body_arguments.items()
            if name != "_xsrf"
        }


class Download(Handler):
    """A file, at GET `/api/penstock` + `path`, written in parts, so that it may be large."""

    Query: ClassVar[type[Parameters]] = Parameters

    async def get(self, *path_arguments: str) -> None:
        query = self.Query.of(self.query_texts())
        parts = self.lines(query, *path_arguments)
        while (part := await self.in_thread(next, parts, None)) is not None:
            self.write(part)
            await self.flush()

    def lines(self, query: Any, *path_arguments: str) -> Iterator[str]:
        """Parts of the file; each is made in a thread."""
        raise NotImplementedError


def plain(value: Any) -> Any:
    """A value that JSON does not know, as one that it knows: times as ISO 8601, durations in seconds."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def _problems(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(map(str, item["loc"])) or "the body"
        unknown = item["type"] == "extra_forbidden"
        lines.append(f"{name}: {'unknown' if unknown else item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)[:2000].replace("%", "%%")
