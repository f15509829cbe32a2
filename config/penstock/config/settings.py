"""Typed settings: defaults, then `penstock.toml`, then the environment (`PENSTOCK_…`), the later one winning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from penstock.config.errors import ConfigError
from penstock.config.sections.alerts import AlertEntry
from penstock.config.sections.builtin.emails import EmailsSettings
from penstock.config.sections.builtin.reports import ReportSettings
from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.config.sections.builtin.uploads import UploadsSettings
from penstock.config.sections.console import ConsoleSettings
from penstock.config.sections.events import EventRule, OutgoingWebhookSettings, WebhookSettings
from penstock.config.sections.gateway import GatewaySettings
from penstock.config.sections.kinds import KindSettings, LimitSettings
from penstock.config.sections.retention import RetentionSettings
from penstock.config.sections.schedules import Duration, ScheduleEntry, duration_text
from penstock.config.sections.schedules import ScheduleSettings as ScheduleSettings
from penstock.config.sections.telemetry import SentrySettings, TelemetrySettings
from penstock.config.sections.tenants import StoragePrefix, overlap, shared_part
from penstock.config.sections.values import HttpUrl, Size
from penstock.config.toml import TomlFile, find_config

_HEADER_BYTES = 128 * 1024
"""Room for the headers of a message."""


HIDDEN = "***"

WorkerPool = Literal["threads", "async", "processes"]
POOLS: tuple[str, ...] = get_args(WorkerPool)


class QueueSettings(BaseModel):
    """`[queues.NAME]`: one queue and the pool of workers that consumes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["celery", "dramatiq"] = "celery"
    """The engine whose workers consume it when `penstock up` starts them."""
    concurrency: int = Field(default=100, ge=1, le=10_000)
    """Jobs that one worker process runs at a time."""
    max_length: int | None = Field(default=None, ge=1)
    """Waiting jobs past which producers get `QueueFull`; None: no limit."""
    weight: int = Field(default=1, ge=1, le=1000)
    """Its share of a worker that has several queues with jobs, against theirs."""


class Settings(BaseSettings):
    """All settings of a Penstock process. Make one with `load_settings()`; importing reads no environment."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", extra="forbid", frozen=True)

    broker_url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://`, `unix://` or `amqp://`, `amqps://`."""
    database_url: str = "sqlite:///var/penstock.db"
    """The ledger: `sqlite:///path`, `postgresql+psycopg://…` or `mysql+pymysql://…`."""
    database_direct_url: str | None = None
    """The ledger's PostgreSQL without PgBouncer, for notifications of the outbox. None: the same as `database_url`, or,
    if that has `?pgbouncer=true`, polling in their place."""
    storage_url: str = "file:var/storage"
    """Object storage: `file:folder`, or `s3://bucket/prefix?endpoint_url=…&region=…`."""
    smtp_url: str = "maildir:var/mail"
    """Outgoing mail: `smtp://user:pass@host:587?starttls=true`, `smtps://…`, or `maildir:folder`."""
    limits_url: str | None = None
    """The Redis in which limits are kept. None: the broker's, if that is Redis."""

    prefix: str = Field(default="penstock", pattern=r"^[A-Za-z0-9_.-]+$")
    """Starts every key and queue on the broker, so that several installations can share one."""
    stock_queues: tuple[str, ...] = ("celery",)
    """Queues of unmodified Celery and Dramatiq clients that the dispatcher empties, in addition to those with our
    names. Make it empty on a broker that another Celery application also uses: its jobs would be taken too."""
    outbox_urls: tuple[str, ...] = ()
    """Databases of web backends whose outbox the dispatcher empties, in addition to the ledger's own."""
    max_payload_bytes: int = Field(default=256 * 1024, ge=1024)
    max_message_bytes: Annotated[Size, Field(ge=1024)] | None = None
    """Size of a message, headers and all, past which a worker or dispatcher does not read it: it becomes a dead letter,
    of which only the beginning is kept. None: 16 times `max_payload_bytes`."""
    max_result_bytes_inline: int = Field(default=64 * 1024, ge=0, le=4 * 1024 * 1024)
    """Results over this go to the storage, and the ledger keeps where they are."""
    broker_timeout_seconds: float = Field(default=5.0, gt=0)
    """A producer's longest wait for the broker before `BrokerUnavailable`."""
    lease_seconds: float = Field(default=15.0, gt=0)
    """A worker that is silent for longer loses its jobs to others."""
    grace_seconds: float = Field(default=30.0, ge=0)
    """Time for running jobs to finish when their worker is asked to stop."""
    processes: int = Field(default=1, ge=1, le=256)
    """Processes of one `penstock worker`, each with its engine's concurrency, forked off one that has imported the
    handlers."""
    pool: WorkerPool = "threads"
    """Where a worker runs handlers that are plain functions: in threads, or each in a process that is kept for the next
    job, as many as its concurrency. `async` is another name for `threads`: coroutines always run on the event loop."""
    max_jobs: int | None = Field(default=None, ge=1)
    """Jobs after which a process of `penstock worker` is replaced by a new one; with the pool of processes, each of
    those. Each process draws its own number,
    up to a tenth more or less, so that not all are replaced at a time. None: it is never replaced for its jobs."""
    max_memory: Annotated[Size, Field(ge=1)] | None = None
    """Resident memory of a process of `penstock worker`, as `"512MB"`, `"1GiB"` or in bytes. One that has more when a
    job ends is replaced by a new one. None: it is never replaced for its memory."""
    isolated_env: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_*]+$")], ...] = ()
    """Environment variables that isolated handlers see in addition to those that every program needs; `*` stands for
    any characters, as in `["MY_*"]`."""
    max_crashes: int = Field(default=3, ge=1)
    """Crashes of a worker under one job after which it becomes a dead letter."""
    unknown_kind_grace: Annotated[Duration, Field(ge=timedelta(), le=timedelta(days=30))] = timedelta(minutes=15)
    """How long a job whose kind, version or fields a worker does not know waits for workers that do, before it becomes
    a dead letter. 0: it becomes one at once."""
    session_connections: int = Field(default=20, ge=1)
    """The most connections of a worker for `ctx.session` in threads, as many for those in coroutines, and as many for
    each database of reports and syncs; never more than its concurrency. Handlers beyond these wait."""
    rabbitmq_consumer_timeout_seconds: float = Field(default=1800.0, gt=0)
    """The `consumer_timeout` of the RabbitMQ, in seconds. A worker refuses kinds whose timeout is not below it."""
    rabbitmq_management_url: HttpUrl | None = None
    """The management API of the RabbitMQ, which `penstock queues list` and `jobs explain` ask for its queues. None: the
    broker's host, port 15672 (15671 with TLS), with its user and password."""

    remote_control: Literal["off", "inspect", "all"] = "all"
    """Which commands of Celery's remote control, sent over the broker, a worker answers: none, those that only read, or
    all. Anyone who can write to the broker can send them."""
    flower_admins: tuple[str, ...] | None = None
    """The older way of `[console]`: those of the logins in the environment, and addresses of those who log in by OAuth
    without `[console.roles]`, who are admins; the others are viewers. None: all of them are admins."""

    http_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on which a worker or dispatcher serves `/live`, `/ready`, `/startup` and `/metrics`. None: it listens on
    nothing."""
    http_host: str = "127.0.0.1"
    """Address of that port; `0.0.0.0` in a container, whose probes come from outside."""
    log_format: Literal["json", "text"] | None = None
    """Form of the log of Penstock's own processes; None: `text`."""
    log_jobs: bool = False
    """Whether workers log each job's start and success, too."""

    token_secret: str | None = Field(default=None, min_length=16, repr=False)
    """Signs the tokens with which browsers follow a job. The same for all gateways and web backends; None: each gateway
    makes one for as long as it runs."""

    queues: dict[str, QueueSettings] = Field(default_factory=dict)
    kinds: dict[str, KindSettings] = Field(default_factory=dict)
    schedules: dict[str, ScheduleEntry] = Field(default_factory=dict)
    """A wrong schedule is kept as a `WrongSchedule`, so that it stops neither a worker nor other schedules."""
    limits: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], LimitSettings] = Field(default_factory=dict)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    console: ConsoleSettings = Field(default_factory=ConsoleSettings)
    sentry: SentrySettings = Field(default_factory=SentrySettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    events: dict[str, EventRule] = Field(default_factory=dict)
    hooks: dict[Annotated[str, Field(max_length=64)], OutgoingWebhookSettings] = Field(default_factory=dict)
    alerts: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], AlertEntry] = Field(default_factory=dict)
    webhooks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], WebhookSettings] = Field(
        default_factory=dict
    )
    uploads: UploadsSettings = Field(default_factory=UploadsSettings)
    tenant_storage_prefix: StoragePrefix = Field(default="tenants/{tenant}", validate_default=True)
    """Folder of a tenant in the storage. The built-in kinds read and write nothing else for a job with this tenant."""
    emails: EmailsSettings = Field(default_factory=EmailsSettings)
    reports: dict[str, ReportSettings] = Field(default_factory=dict)
    syncs: dict[str, SyncSettings] = Field(default_factory=dict)

    _file: Path | None = PrivateAttr(None)
    _sources: tuple[TomlFile, dict[str, Any]] = PrivateAttr(default_factory=lambda: (TomlFile.empty(), {}))
    """The file, and the values of the environment."""

    @field_validator("tenant_storage_prefix")
    @classmethod
    def _apart_from_uploads(cls, value: str, info: ValidationInfo) -> str:
        uploads = info.data.get("uploads")
        if uploads is not None and overlap(shared_part(value), uploads.prefix):
            raise ValueError(
                f"{value!r} overlaps {uploads.prefix!r}, where uploads of jobs without a tenant are; change one of "
                "tenant_storage_prefix and `prefix` of [uploads]"
            )
        return value

    @property
    def file(self) -> Path | None:
        """The penstock.toml these were read from."""
        return self._file

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_seconds)

    @property
    def message_limit(self) -> int:
        """The bytes of the largest message that is read; a job that a producer accepts always fits."""
        limit = self.max_message_bytes or 16 * self.max_payload_bytes
        return max(limit, self.max_payload_bytes + _HEADER_BYTES)

    def queue(self, name: str) -> QueueSettings:
        """The settings of a queue; the defaults where the file does not list it."""
        return self.queues.get(name) or QueueSettings()


_inherited: Settings | None = None


def inherit_settings(settings: Settings) -> None:
    """Let `load_settings` of this process return these: those of the worker, whose environment it does not have."""
    global _inherited
    _inherited = settings


def load_settings(path: str | Path | None = None) -> Settings:
    """Read `penstock.toml` (`path`, else `PENSTOCK_CONFIG`, else the first found) and the environment.

    Without a path, an isolated handler gets the settings of its worker.

    Raises:
        ConfigError: a setting is unknown or wrong; names it, with its file and line.
    """
    if path is None and _inherited is not None:
        return _inherited
    file = TomlFile.read(config_path) if (config_path := find_config(path)) else TomlFile.empty()
    environment = EnvSettingsSource(Settings)()
    try:
        settings = Settings(**_merged(file.values, environment))
        settings._file, settings._sources = file.path, (file, environment)
        return settings
    except ValidationError as error:
        raise ConfigError(_explain(error, file, environment)) from error


def redact_url(url: str) -> str:
    """The URL without its password, fit for logs and messages."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


class SettingInForce(NamedTuple):
    """A setting as this process has it.

    Attributes:
        name: with its table, such as `queues.emails.weight`.
        value: without secrets.
        source: `default`, the environment variable, or `file:line`.
    """

    name: str
    value: Any
    source: str


def settings_in_force(settings: Settings) -> list[SettingInForce]:
    """All settings, the defaults too, in the order of their names; as they were when the process read them."""
    file, environment = settings._sources

    def source(path: list[str]) -> str:
        if _is_in(environment, path):
            return f"PENSTOCK_{path[0].upper()}"
        return file.where(path) if _is_in(file.values, path) else "default"

    leaves = sorted(_leaves(settings, []), key=lambda leaf: leaf[0])
    return [SettingInForce(".".join(path), _without_secrets(path[-1], value), source(path)) for path, value in leaves]


def _leaves(value: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Path and value of each setting that has no further settings in it."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _leaves(getattr(value, name), [*path, field.alias or name])
    elif isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        for name, item in value.items():
            yield from _leaves(item, [*path, str(name)])
    else:
        yield path, value


def _is_in(values: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


_SECRET = re.compile(r"secret|password|passwd|token|credential|access_?key|api_?key|signature|dsn", re.IGNORECASE)
_CLOSED = ("headers", "params", "payload", "values")
"""Tables whose values may be secrets of anyone's: their names are shown."""
_REFERENCES = re.compile(r"\$\{\w+\}")


def _without_secrets(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if name in _CLOSED else _without_secrets(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_secrets(name, item) for item in value]
    if isinstance(value, str):
        if _SECRET.search(name) and not name.endswith("_url") and _REFERENCES.fullmatch(value) is None:
            return HIDDEN
        return _without_query_secrets(redact_url(value)) if "://" in value else value
    if isinstance(value, timedelta):
        return duration_text(value)
    return value if isinstance(value, bool | int | float | None) else str(value)


def _without_query_secrets(url: str) -> str:
    def hide(match: re.Match[str]) -> str:
        return f"{match[1]}{HIDDEN}" if _SECRET.search(match[1]) else match[0]

    return re.sub(r"([?&][^=&]*=)([^&]*)", hide, url)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, file: TomlFile, environment: dict[str, Any]) -> str:
    lines = []
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"]]
        unknown = item["type"] == "extra_forbidden"
        message = "unknown setting" if unknown else item["msg"].removeprefix("Value error, ")
        from_environment = bool(path) and path[0] in environment
        where = f"PENSTOCK_{path[0].upper()}" if from_environment else file.where(path)
        lines.append(f"{where}: {'.'.join(path)}: {message}")
    return "\n".join(lines)
