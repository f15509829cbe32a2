"""Pyramid: a `Producer` for the life of the process, the stream of a job's progress, readiness, traces.

    settings = {"penstock.secret": …}      # or in the .ini file
    config.include("penstock.producers.contrib.pyramid", route_prefix="/penstock")

    request.penstock.enqueue(…)

`penstock.producer` among the settings is a producer to use, in place of one as `penstock.toml` and the environment say.
`penstock.max_streams` is how many jobs browsers may follow at a time in one process (default 4): each holds a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from penstock.config.errors import ConfigError, InvalidToken
from penstock.producers import Producer
from penstock.producers.contrib.web import (
    HEADERS,
    SEEN,
    WSGI_STREAMS,
    AnyHandle,
    Streams,
    TooManyStreams,
    open_producer,
    ready,
)
from penstock.producers.tokens import check_secret, progress_token, read_following_token
from penstock.producers.traces import traced

__all__ = ["events_path", "includeme"]


def includeme(config: Configurator) -> None:
    """Raises ConfigError: a setting is wrong, or the secret is missing or too short."""
    settings = config.get_settings()
    if not settings.get("penstock.secret"):
        raise ConfigError("set penstock.secret, which tokens for browsers are signed with, among Pyramid's settings")
    try:
        check_secret(settings["penstock.secret"])
    except ConfigError as error:
        raise ConfigError(f"penstock.secret: {error}") from None
    config.registry["penstock.streams"] = Streams(settings.get("penstock.max_streams", WSGI_STREAMS))
    producer = open_producer(settings.get("penstock.producer"))

    def penstock(_request: Request) -> Producer:
        return producer

    config.add_request_method(penstock, reify=True)
    config.add_route("penstock_events", "/events")
    config.add_route("penstock_ready", "/ready")
    config.add_view(_events, route_name="penstock_events", request_method="GET")
    config.add_view(_ready, route_name="penstock_ready", request_method="GET", renderer="json")
    config.add_tween(f"{__name__}.traces")


def events_path(request: Request, handle: AnyHandle, expires_in: timedelta = timedelta(hours=1)) -> str:
    """The path of the stream of a job's progress, with a token for it, to hand to a browser."""
    token = progress_token(handle.id, secret=_secret(request), expires_in=expires_in)
    return str(request.route_path("penstock_events", _query={"token": token}))


def traces(handler: Callable[[Request], Response], _registry: Any) -> Callable[[Request], Response]:
    """A tween: jobs that a request enqueues carry its trace."""

    def tween(request: Request) -> Response:
        with traced(request.headers.get("traceparent")):
            return handler(request)

    return tween


def _events(request: Request) -> Response:
    try:
        token = read_following_token(request.GET.get("token", ""), secret=_secret(request))
    except InvalidToken as error:
        return Response(json_body={"detail": str(error)}, status=403)
    if request.headers.get("last-event-id") == SEEN:
        return Response(status=204)
    streams: Streams = request.registry["penstock.streams"]
    try:
        return Response(
            app_iter=streams.follow(request.penstock.handle(token.job_id), token.expires_at),
            headerlist=list(HEADERS.items()),
        )
    except TooManyStreams as error:
        return Response(json_body=error.body, status=503, headers=error.headers)


def _ready(request: Request) -> dict[str, str]:
    request.response.status_code, body = ready(request.penstock)
    return body


def _secret(request: Request) -> str:
    return str(request.registry.settings["penstock.secret"])
