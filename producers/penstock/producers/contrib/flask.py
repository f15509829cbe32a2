"""Flask: a `Producer` for the life of the process, the stream of a job's progress, readiness, traces.

penstock = Penstock(app)      # or Penstock() and penstock.init_app(app)
penstock.producer.enqueue(…)
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request, url_for

from penstock.config.errors import ConfigError, InvalidToken
from penstock.producers import Producer
from penstock.producers.contrib.web import (
    HEADERS,
    SEEN,
    WSGI_STREAMS,
    AnyHandle,
    Streams,
    TooManyStreams,
    TracesWsgi,
    open_producer,
    ready,
)
from penstock.producers.tokens import check_secret, progress_token, read_following_token

__all__ = ["Penstock"]


class Penstock:
    """An extension; one may serve several applications, each with a producer of its own.

    Tokens for browsers are signed with PENSTOCK_TOKEN_SECRET of the application's config, else with its SECRET_KEY.
    PENSTOCK_MAX_STREAMS is how many jobs browsers may follow at a time in one process (default 4): each holds a thread.

    Arguments:
        producer: None: one as `penstock.toml` and the environment say when an application is initialised.
        url_prefix: of its routes, `/events` and `/ready`.

    Raises:
        ConfigError: a setting is wrong, or the secret is too short.
    """

    def __init__(
        self, app: Flask | None = None, *, producer: Producer | None = None, url_prefix: str = "/penstock"
    ) -> None:
        self._given, self._url_prefix = producer, url_prefix
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        if _configured(app):
            _secret(app)
        app.extensions["penstock_streams"] = Streams(app.config.get("PENSTOCK_MAX_STREAMS", WSGI_STREAMS))
        app.extensions["penstock"] = open_producer(self._given)
        routes = Blueprint("penstock", __name__, url_prefix=self._url_prefix)
        routes.add_url_rule("/events", view_func=self._events, endpoint="events")
        routes.add_url_rule("/ready", view_func=self._ready, endpoint="ready")
        app.register_blueprint(routes)
        app.wsgi_app = TracesWsgi(app.wsgi_app)  # type: ignore[method-assign]

    @property
    def producer(self) -> Producer:
        """Producer of the current application."""
        producer: Producer = current_app.extensions["penstock"]
        return producer

    def events_path(self, handle: AnyHandle, expires_in: timedelta = timedelta(hours=1)) -> str:
        """The path of the stream of a job's progress, with a token for it, to hand to a browser."""
        return url_for(
            "penstock.events", token=progress_token(handle.id, secret=_secret(current_app), expires_in=expires_in)
        )

    def _events(self) -> Response | tuple[Response, int]:
        try:
            token = read_following_token(request.args.get("token", ""), secret=_secret(current_app))
        except InvalidToken as error:
            return jsonify(detail=str(error)), 403
        if request.headers.get("last-event-id") == SEEN:
            return Response(status=204)
        streams: Streams = current_app.extensions["penstock_streams"]
        try:
            return Response(streams.follow(self.producer.handle(token.job_id), token.expires_at), headers=HEADERS)
        except TooManyStreams as error:
            return Response(json.dumps(error.body), 503, error.headers, content_type="application/json")

    def _ready(self) -> tuple[Response, int]:
        status, body = ready(self.producer)
        return jsonify(body), status


def _configured(app: Flask) -> Any:
    return app.config.get("PENSTOCK_TOKEN_SECRET") or app.secret_key


def _secret(app: Flask) -> str:
    secret = _configured(app)
    if not secret:
        raise ConfigError("tokens for browsers are signed with PENSTOCK_TOKEN_SECRET or SECRET_KEY; set one")
    try:
        return check_secret(secret.hex() if isinstance(secret, bytes) else secret)
    except ConfigError as error:
        raise ConfigError(f"PENSTOCK_TOKEN_SECRET, else SECRET_KEY: {error}") from None
