"""The verb that each route demands."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from penstock.schemas.verbs import Verb

PUBLIC = None
"""Of a route that is open to all, or, for webhooks, to the holder of their secret."""

ROUTES: dict[tuple[str, str], Verb | None] = {
    ("POST", "/v1/jobs/{kind}"): Verb.SEND,
    ("POST", "/v1/jobs"): Verb.SEND,
    ("POST", "/v1/events"): Verb.SEND,
    ("GET", "/v1/kinds"): Verb.SEND,
    ("GET", "/v1/kinds/{kind}"): Verb.SEND,
    ("GET", "/openapi.json"): Verb.SEND,
    ("GET", "/v1/jobs/{id}"): Verb.READ,
    ("GET", "/v1/jobs/{id}/events"): Verb.READ,
    ("GET", "/v1/jobs/{id}/ws"): Verb.READ,
    ("GET", "/v1/jobs/{id}/explain"): Verb.READ,
    ("GET", "/v1/deadletters"): Verb.READ,
    ("GET", "/v1/deadletters/groups"): Verb.READ,
    ("GET", "/v1/deadletters/{id}"): Verb.READ,
    ("GET", "/v1/schedules"): Verb.READ,
    ("GET", "/v1/schedules/{name}"): Verb.READ,
    ("GET", "/v1/schedules/{name}/next"): Verb.READ,
    ("GET", "/v1/schedules/{name}/runs"): Verb.READ,
    ("GET", "/v1/workflows"): Verb.READ,
    ("GET", "/v1/workflows/{id}"): Verb.READ,
    ("POST", "/v1/jobs/{id}/cancel"): Verb.CANCEL,
    ("POST", "/v1/workflows/{id}/cancel"): Verb.CANCEL,
    ("POST", "/v1/jobs/{id}/retry"): Verb.RETRY,
    ("POST", "/v1/workflows/{id}/retry"): Verb.RETRY,
    ("POST", "/v1/schedules"): Verb.SCHEDULE,
    ("DELETE", "/v1/schedules/{name}"): Verb.SCHEDULE,
    ("POST", "/v1/schedules/{name}/pause"): Verb.SCHEDULE,
    ("POST", "/v1/schedules/{name}/resume"): Verb.SCHEDULE,
    ("POST", "/v1/schedules/{name}/run"): Verb.SCHEDULE,
    ("POST", "/v1/schedules/{name}/backfill"): Verb.SCHEDULE,
    ("POST", "/v1/deadletters/replay"): Verb.ADMIN,
    ("POST", "/v1/deadletters/discard"): Verb.ADMIN,
    ("POST", "/v1/workflows/{id}/steps/{step}/signal"): Verb.ADMIN,
    ("POST", "/v1/webhooks/{name}"): PUBLIC,
    ("GET", "/live"): PUBLIC,
    ("GET", "/health"): PUBLIC,
    ("GET", "/ready"): PUBLIC,
    ("GET", "/metrics"): PUBLIC,
}
"""Method and path → verb. The handshake of a WebSocket is a GET."""


def demanded(connection: HTTPConnection) -> Verb:
    """The verb that the route of a caller's request demands: `admin` where the table has none."""
    path = getattr(connection.scope.get("route"), "path", "")
    return ROUTES.get((connection.scope.get("method", "GET"), path)) or Verb.ADMIN
