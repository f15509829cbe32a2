"""Errors as clients see them: problem details, RFC 9457. https://www.rfc-editor.org/rfc/rfc9457"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from penstock.config.errors import (
    BrokerUnavailable,
    DuplicateJob,
    InvalidJob,
    InvalidState,
    InvalidToken,
    JobNotFound,
    LedgerUnavailable,
    NotTracked,
    PayloadTooLarge,
    PenstockError,
    QueueFull,
    ScheduleNotFound,
    StorageError,
    UnknownQueue,
)
from penstock.schemas.jobs.kind import Kind
from penstock.schemas.wire.payloads import shown_errors

log = logging.getLogger("penstock.gateway")

MEDIA_TYPE = "application/problem+json"
_TYPES = "urn:penstock:problem:"
_AGAIN = {"Retry-After": "5"}
MOST_ERRORS = 100
"""Errors that an answer lists."""
_RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}
"""The names of RFC 9110; Python before 3.13 has older ones."""


class Problem(HTTPException):
    """A request that is refused.

    Arguments:
        name: of the kind of problem, in kebab-case; the last part of its `type`.
        detail: what is wrong with this request, and what to do.
        errors: an entry for each wrong part: `detail`, and `pointer` (a JSON Pointer into the body), `parameter` (of
            the query or path) or `header`.
        members: further members of the problem.
    """

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(status, detail, headers)
        self.name, self.errors, self.members = name, errors, members

    def body(self, most_errors: int = MOST_ERRORS) -> dict[str, Any]:
        body = {
            "type": _TYPES + self.name,
            "title": _phrase(self.status_code),
            "status": self.status_code,
            "detail": self.detail,
        }
        errors = list(self.errors[:most_errors])
        if (more := len(self.errors) - len(errors)) > 0:
            errors.append({"detail": f"and {more} more"})
        return body | ({"errors": errors} if errors else {}) | self.members

    def response(self) -> Response:
        return Response(to_json(self.body()), self.status_code, self.headers, MEDIA_TYPE)


def invalid_body(
    error: ValidationError, what: str, *, under: Sequence[str | int] = (), kind: Kind | None = None
) -> Problem:
    """Problem for a body that is not JSON (400) or fails validation (422).

    Arguments:
        what: the body should have been, such as `schedule`.
        under: path in the body of the part that was validated.
        kind: of the payload that was validated, if it was one: its sensitive values are not repeated.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if any(item["type"] == "json_invalid" for item in details):
        return invalid_json(details[0]["msg"])
    errors = [
        {"pointer": pointer([*under, *path]), "detail": _reason({"msg": message})}
        for path, message in shown_errors(error, kind=kind)
    ]
    return Problem(422, "invalid-fields", f"the body is not a valid {what}; see errors", errors=errors)


def invalid_json(why: str) -> Problem:
    why = why.removeprefix("Invalid JSON: ")
    return Problem(400, "invalid-json", f"the body is not JSON: {why}", errors=[{"pointer": "#", "detail": why}])


def wrong_parameters(details: Iterable[ErrorDetails | Mapping[str, Any]]) -> Problem:
    """Problem for query parameters that fail validation."""
    errors = [{"parameter": ".".join(map(str, item["loc"])), "detail": _reason(item)} for item in details]
    return Problem(422, "invalid-parameters", "a query parameter is wrong; see errors", errors=errors)


def pointer(path: Iterable[str | int]) -> str:
    """A JSON Pointer in the form of a URI fragment (RFC 6901, section 6), but not percent-encoded."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def problem_of(error: PenstockError) -> Problem:
    """The problem that a client sees for one of our errors. One that names our hosts or settings is only logged."""
    match error:
        case PayloadTooLarge():
            detail = f"the job is {error.size} bytes, over the limit of {error.limit}"
            return Problem(413, "job-too-large", detail, limit=error.limit)
        case UnknownQueue():  # its text lists all queues
            return Problem(422, "invalid-job", "no kind and no setting names the queue of this job")
        case InvalidJob():
            return Problem(422, "invalid-job", str(error))
        case DuplicateJob():
            detail = "another job holds its key"
            return Problem(409, "duplicate-job", detail, existing_id=error.existing_id)
        case QueueFull():
            return Problem(503, "queue-full", f"queue {error.queue} is full; try again later", headers=_AGAIN)
        case JobNotFound():
            return job_not_found()
        case ScheduleNotFound():
            return schedule_not_found()
        case InvalidState() | NotTracked():
            return Problem(409, "wrong-state", str(error))
        case InvalidToken():
            return Problem(401, "invalid-token", str(error))
        case BrokerUnavailable():
            log.warning("%s", error)
            return Problem(503, "broker-unavailable", "the broker is not available; try again later", headers=_AGAIN)
        case LedgerUnavailable():
            log.warning("%s", error)
            return Problem(503, "ledger-unavailable", "the ledger is not available; try again later", headers=_AGAIN)
        case StorageError():
            log.warning("%s", error)
            return Problem(503, "storage-unavailable", "the storage is not available; try again later", headers=_AGAIN)
    log.error("a request failed", exc_info=error)
    return broken()


def job_not_found() -> Problem:
    return Problem(404, "job-not-found", "there is no such job, or it is not for this caller to see")


def dead_letter_not_found() -> Problem:
    return Problem(404, "dead-letter-not-found", "there is no such dead letter, or it is not for this caller to see")


def schedule_not_found() -> Problem:
    return Problem(404, "schedule-not-found", "there is no such schedule, or it is not for this caller to see")


def workflow_not_found() -> Problem:
    return Problem(404, "workflow-not-found", "there is no such workflow, or it is not for this caller to see")


def broken() -> Problem:
    return Problem(500, "internal-error", "the gateway failed; its log says why")


def add_handlers(app: FastAPI) -> None:
    """Have every error of an app answered as a problem."""
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(PenstockError, _answer)
    app.add_exception_handler(ClientDisconnect, _answer)
    app.add_exception_handler(Exception, _answer)


def _phrase(status: int) -> str:
    return _RENAMED.get(status) or HTTPStatus(status).phrase


async def _answer(connection: Request | WebSocket, error: Exception) -> Response:
    """Answer an HTTP request, or a WebSocket that was not accepted yet."""
    return _problem(connection, error).response()


def _problem(connection: HTTPConnection, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case HTTPException():
            detail = {404: "there is nothing at this path", 405: "the path does not know this method"}
            text = detail.get(error.status_code, error.detail)
            return Problem(
                error.status_code, _phrase(error.status_code).lower().replace(" ", "-"), text, headers=error.headers
            )
        case RequestValidationError():
            return _request_problem(error)
        case PenstockError():
            return problem_of(error)
        case ClientDisconnect():
            return invalid_json("the connection ended before the body did")
    return broken()


def _request_problem(error: RequestValidationError) -> Problem:
    """Problem for a FastAPI RequestValidationError."""
    details = error.errors()
    if any(item["type"] == "json_invalid" for item in details):
        return invalid_json(details[0]["msg"])
    errors = []
    for item in details:
        part, *path = item["loc"]
        if part == "body":
            where = {"pointer": pointer(path)}
        else:
            where = {"header" if part == "header" else "parameter": ".".join(map(str, path))}
        errors.append({**where, "detail": _reason(item)})
    return Problem(422, "invalid-request", "a part of the request is not valid; see errors", errors=errors)


def _reason(item: ErrorDetails | Mapping[str, Any]) -> str:
    """The message of a pydantic error, without the name of its type."""
    return str(item["msg"]).removeprefix("Value error, ")
