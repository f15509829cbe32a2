"""The producers of a Django project, its requests' traces, and enqueueing after a commit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, cast

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse
from django.utils.decorators import sync_and_async_middleware

from penstock.config.errors import ConfigError
from penstock.producers import AsyncProducer, Producer
from penstock.producers.contrib.web import ASYNC_STREAMS, WSGI_STREAMS, AnyHandle, Streams, open_producer
from penstock.producers.tokens import check_secret, progress_token
from penstock.producers.traces import traced
from penstock.schemas.jobs.job import Job


@cache
def producer() -> Producer:
    """The process's producer, made with the first call as `penstock.toml` and the environment say; closed at its end.

    Raises:
        ConfigError: a setting is wrong.
    """
    return open_producer()


@cache
def async_producer() -> AsyncProducer:
    """The process's producer for asynchronous views, made with the first call."""
    return AsyncProducer.from_settings()


def enqueue_on_commit(job: Job, *, using: str | None = None, **options: Any) -> None:
    """Send a job once the current transaction is committed; at once where there is none.

    It is lost if the process dies in between, and if the broker is down `BrokerUnavailable` comes when the data is
    committed already. `Outbox` has neither, and a handle.

    Arguments:
        using: the alias of the database; options: those of `Producer.enqueue`.
    """
    transaction.on_commit(lambda: producer().enqueue(job, **options), using=using)


def events_path(handle: AnyHandle, expires_in: timedelta = timedelta(hours=1)) -> str:
    """The path of the stream of a job's progress, with a token for it, to hand to a browser."""
    token = progress_token(handle.id, secret=token_secret(), expires_in=expires_in)
    return f"{reverse('penstock-events')}?token={token}"


def token_secret() -> str:
    """Secret that signs tokens for browsers: PENSTOCK_TOKEN_SECRET, else SECRET_KEY.

    Raises:
        ConfigError: it is too short.
    """
    own = getattr(settings, "PENSTOCK_TOKEN_SECRET", None)
    try:
        return check_secret(settings.SECRET_KEY if own is None else own)
    except ConfigError as error:
        raise ConfigError(f"{'SECRET_KEY' if own is None else 'PENSTOCK_TOKEN_SECRET'}: {error}") from None


@cache
def wsgi_streams() -> Streams:
    """The streams of synchronous servers: at most PENSTOCK_MAX_STREAMS of the settings, or 4; each holds a thread."""
    return Streams(getattr(settings, "PENSTOCK_MAX_STREAMS", WSGI_STREAMS))


@cache
def asgi_streams() -> Streams:
    """The streams of asynchronous servers: at most PENSTOCK_MAX_STREAMS of the settings, or 1000."""
    return Streams(getattr(settings, "PENSTOCK_MAX_STREAMS", ASYNC_STREAMS))


@sync_and_async_middleware
def traces(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Middleware: jobs that a request enqueues carry its trace."""
    if iscoroutinefunction(get_response):

        async def handle_async(request: HttpRequest) -> HttpResponseBase:
            with traced(request.headers.get("traceparent")):
                return cast(HttpResponseBase, await get_response(request))

        return handle_async

    def handle(request: HttpRequest) -> HttpResponseBase:
        with traced(request.headers.get("traceparent")):
            return cast(HttpResponseBase, get_response(request))

    return handle
