"""OpenTelemetry's SDK, set up as its own environment variables say, for a process that Penstock starts.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from penstock.producers.traces.loaded import tracing
from penstock.schemas import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("penstock.telemetry")

Signal = Literal["traces", "metrics"]
_LAST_SECONDS = 5.0
"""How long the end of a process waits until what was measured is sent."""


@contextmanager
def spans_exported(role: str) -> Iterator[None]:
    """Export the spans of this process meanwhile, if the environment asks for it and the application has set no
    provider of its own. Raises nothing of its own.

    Arguments:
        role: `worker`, `dispatcher` or `gateway`; `penstock-…` is the service's name where the environment has none.
    """
    targets: list[SpanExporter] = []
    provider = None
    try:
        provider = _make_provider(role, targets)
    except Exception:
        log.exception("no spans are exported")
    try:
        yield
    finally:
        if provider is not None:
            in_time("spans", provider.shutdown, targets)


def exporters(signal: Signal) -> list[Callable[[], Any]]:
    """The classes of the exporters that the environment asks for and that are installed.

    Spans are exported where an endpoint is set, metrics only where that is asked for: `/metrics` may serve them, too.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    classes = []
    for name in _names(signal):
        group = f"opentelemetry_{signal}_exporter"
        points = entry_points(group=group, name=_entry_point(signal, name))
        try:
            classes.append(next(iter(points)).load())
        except (StopIteration, ImportError):
            package = "penstock[telemetry]" if name in ("otlp", "console") else f"the package of exporter {name!r}"
            if _protocol(signal) == "grpc" and name == "otlp":
                package = "penstock[telemetry] and opentelemetry-exporter-otlp-proto-grpc"
            log.warning(
                "the environment asks for %s by %s, and no library for it is here: install %s", *(signal, name, package)
            )
    return classes


def resource_of(role: str) -> Resource:
    """This process as a resource, the environment's own attributes first."""
    from opentelemetry.sdk.resources import Resource

    own = {
        "service.name": f"penstock-{role}",
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
    }
    named = os.environ.get("OTEL_SERVICE_NAME")
    detected = Resource.create()
    unnamed = not named and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {
        name: value for name, value in detected.attributes.items() if not (unnamed and name == "service.name")
    }
    return Resource({**own, **attributes})


def in_time(what: str, finish: Callable[[], None], targets: Sequence[Any]) -> None:
    """Call a function that sends the rest, and go on without it if that takes too long: a server may not answer.

    Arguments:
        targets: the exporters that are given up then.
    """

    def run() -> None:
        try:
            finish()
        except Exception:
            log.exception("the last %s are lost", what)

    thread = threading.Thread(target=run, name=f"penstock last {what}", daemon=True)
    thread.start()
    thread.join(_LAST_SECONDS)
    if thread.is_alive():
        log.warning("the last %s are lost: their exporter has not sent them within %g s", what, _LAST_SECONDS)
        for target in targets:
            with suppress(Exception):
                target.shutdown()  # else it goes on trying


def _make_provider(role: str, targets: list[SpanExporter]) -> TracerProvider | None:
    """Arguments: targets: takes the exporters."""
    if tracing() is not None:
        return None  # the application's own, such as that of opentelemetry-instrument
    if not (classes := exporters("traces")):
        return None
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource_of(role), shutdown_on_exit=False)
    for make_exporter in classes:
        targets.append(make_exporter())
        provider.add_span_processor(BatchSpanProcessor(targets[-1]))
    trace.set_tracer_provider(provider)
    return provider


def _names(signal: Signal) -> list[str]:
    chosen = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    if chosen:
        return [name for name in (part.strip() for part in chosen.split(",")) if name not in ("", "none")]
    variables = [f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"]
    if signal == "traces":
        variables.append("OTEL_EXPORTER_OTLP_ENDPOINT")
    return ["otlp"] if any(os.environ.get(variable, "").strip() for variable in variables) else []


def _entry_point(signal: Signal, name: str) -> str:
    if name != "otlp":
        return name
    return "otlp_proto_grpc" if _protocol(signal) == "grpc" else "otlp_proto_http"


def _protocol(signal: Signal) -> str:
    general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    return (os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or general).strip().lower()
