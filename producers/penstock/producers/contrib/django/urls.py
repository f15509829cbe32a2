"""`path("penstock/", include("penstock.producers.contrib.django.urls"))`: the stream of a job, and readiness."""

from __future__ import annotations

from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_safe

from penstock.config.errors import InvalidToken
from penstock.producers.contrib.django.running import (
    asgi_streams,
    async_producer,
    producer,
    token_secret,
    wsgi_streams,
)
from penstock.producers.contrib.web import HEADERS, SEEN, TooManyStreams
from penstock.producers.contrib.web import ready as is_ready
from penstock.producers.tokens import read_following_token


@require_GET
def events(request: HttpRequest) -> HttpResponseBase:
    """The course of the job that `?token=` is for, as Server-Sent Events."""
    try:
        token = read_following_token(request.GET.get("token", ""), secret=token_secret())
    except InvalidToken as error:
        return JsonResponse({"detail": str(error)}, status=403)
    if request.headers.get("last-event-id") == SEEN:
        return HttpResponse(status=204)
    try:
        if isinstance(request, ASGIRequest):
            content: Any = asgi_streams().follow_async(async_producer().handle(token.job_id), token.expires_at)
        else:
            content = wsgi_streams().follow(producer().handle(token.job_id), token.expires_at)
    except TooManyStreams as error:
        return JsonResponse(error.body, status=503, headers=error.headers)
    return StreamingHttpResponse(content, headers=HEADERS)


@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 while the broker answers, else 503."""
    status, body = is_ready(producer())
    return JsonResponse(body, status=status)


token_secret(), asgi_streams(), wsgi_streams()  # wrong settings are found here, not by the first browser

urlpatterns = [path("events", events, name="penstock-events"), path("ready", ready, name="penstock-ready")]
