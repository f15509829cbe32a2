"""`[sentry]` and `[telemetry]`: where errors are reported, and how spans and metrics look."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SentrySettings(BaseModel):
    """`[sentry]`: failed attempts as events of Sentry. An application that calls `sentry_sdk.init` itself needs no
    `dsn` here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dsn: str | None = Field(default=None, repr=False)
    """None: Sentry is used only if the application has initialised it."""
    environment: str | None = None
    retries: Literal["warning", "error", "off"] = "warning"
    """Level of the event of an attempt that is tried again; `off`: only deaths are reported."""
    schedules: bool = True
    """Whether schedules are cron monitors."""


class TelemetrySettings(BaseModel):
    """`[telemetry]`: spans and metrics. Exporters are set by OpenTelemetry's own variables, such as
    `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    process_spans: Literal["child", "linked"] = "child"
    """Whether a job's span continues the trace of what enqueued it, or begins one that is linked to it."""
