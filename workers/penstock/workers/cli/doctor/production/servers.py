"""Connections to servers: encrypted, with a password of their own."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from penstock.config.settings import Settings
from penstock.workers.telemetry.findings import Finding, fail, ok, warn, weakness

_FILES = {"sqlite", "file", "maildir"}
_ADMINISTRATORS = {"postgres", "root"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the settings.

    Attributes:
        setting: its name, such as `broker_url`.
    """

    setting: str
    parts: SplitResult
    options: Mapping[str, str]

    @classmethod
    def parse(cls, setting: str, url: str) -> Server:
        parts = urlsplit(url)
        return cls(setting, parts, {name: values[-1] for name, values in parse_qs(parts.query).items()})

    @property
    def scheme(self) -> str:
        return self.parts.scheme.partition("+")[0]

    @property
    def user(self) -> str | None:
        return None if self.parts.username is None else unquote(self.parts.username)

    @property
    def password(self) -> str:
        return unquote(self.parts.password or "")

    @property
    def hosts(self) -> list[str]:
        """Its host names; several, where a URL names several sentinels."""
        listed = self.parts.netloc.rpartition("@")[2].split(",")
        hosts = [host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0] for host in listed]
        return [*filter(None, hosts)]

    @property
    def is_local(self) -> bool:
        """Whether what is said to it stays on this machine."""
        if self.scheme == "unix" or (self.scheme == "postgresql" and self.options.get("host", "").startswith("/")):
            return True
        return all(is_loopback(host) for host in self.hosts)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def review(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    for server in servers(settings):
        if server.scheme in _FILES:
            continue
        yield _encryption(server, environment)
        if (finding := _password(server, environment)) is not None:
            yield finding
    if urlsplit(settings.smtp_url).scheme == "maildir":
        advice = "set smtp_url to smtps://… or smtp://…?starttls=true"
        yield warn(
            "delivery of smtp_url", f"{settings.smtp_url} keeps every mail in a folder and delivers none", advice
        )


def servers(settings: Settings) -> Iterator[Server]:
    """Every URL of the settings."""
    urls: dict[str, str | None] = {
        "broker_url": settings.broker_url,
        "limits_url": settings.limits_url,
        "rabbitmq_management_url": settings.rabbitmq_management_url,
        "database_url": settings.database_url,
        "database_direct_url": settings.database_direct_url,
        **{f"outbox_urls[{number}]": url for number, url in enumerate(settings.outbox_urls)},
        **{f"reports.{name}.database_url": report.database_url for name, report in settings.reports.items()},
        **{f"syncs.{name}.database_url": sync.database_url for name, sync in settings.syncs.items()},
        **{f"syncs.{name}.url": sync.url for name, sync in settings.syncs.items()},
        "smtp_url": settings.smtp_url,
        "storage_url": settings.storage_url,
    }
    for setting, url in urls.items():
        if url is not None:
            server = Server.parse(setting, url)
            # Without an endpoint, boto3 speaks HTTPS.
            yield (
                Server.parse(setting, server.options.get("endpoint_url", "https:")) if server.scheme == "s3" else server
            )


def _encryption(server: Server, environment: Mapping[str, str]) -> Finding:
    check = f"encryption of {server.setting}"
    if server.is_local and server.hosts:
        return ok(check, f"{', '.join(server.hosts)}: does not leave this machine")
    match server.scheme:
        case "unix":
            return ok(check, "a socket: does not leave this machine")
        case "rediss" | "amqps":
            return _verified(check, server)
        case "redis" | "amqp":
            return fail(check, f"{server.scheme}:// is plain text", f"use {server.scheme}s://, with TLS at the broker")
        case "postgresql":
            return _postgresql(check, server, environment)
        case "mysql" | "mariadb":
            return _mysql(check, server)
        case "smtps" | "https":
            return ok(check, f"{server.scheme}://")
        case "smtp" if server.options.get("starttls") == "true":
            return ok(check, "starttls=true")
        case "smtp":
            return fail(check, "smtp:// is plain text", "use smtps://, or smtp://…?starttls=true")
        case _:
            return fail(check, f"{server.scheme}:// is plain text", f"use {server.scheme}s://")


def _verified(check: str, server: Server) -> Finding:
    if server.options.get("ssl_cert_reqs", "required").lower() in ("none", "cert_none"):
        advice = "leave ssl_cert_reqs out, and name the broker's CA with ssl_ca_certs"
        return fail(check, "ssl_cert_reqs=none accepts every server as the broker", advice)
    if server.options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        advice = "leave ssl_check_hostname out; the certificate must have the host's name"
        return fail(check, "ssl_check_hostname=false accepts certificates of other servers", advice)
    return ok(check, f"{server.parts.scheme}://, with the certificate checked")


def _postgresql(check: str, server: Server, environment: Mapping[str, str]) -> Finding:
    if server.is_local:
        return ok(check, "a socket: does not leave this machine")
    mode = server.options.get("sslmode") or environment.get("PGSSLMODE", "")
    advice = "add ?sslmode=verify-full&sslrootcert=/path/to/ca.pem"
    if mode == "verify-full":
        return ok(check, "sslmode=verify-full")
    if mode in ("verify-ca", "require"):
        return warn(check, f"sslmode={mode} encrypts, and does not check that it is this host", advice)
    return fail(check, f"sslmode={mode or 'prefer'} may be plain text", advice)


def _mysql(check: str, server: Server) -> Finding:
    advice = "add ?ssl_ca=/path/to/ca.pem, with which the certificate is checked"
    if "ssl_ca" not in server.options:
        if any(name.startswith("ssl") for name in server.options):
            return warn(check, "TLS without ssl_ca accepts every server as the database", advice)
        return fail(check, "without ssl_ca it is plain text", advice)
    if server.options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        return fail(check, "ssl_check_hostname=false accepts certificates of other servers", "leave it out")
    return ok(check, "ssl_ca, with the certificate checked")


def _password(server: Server, environment: Mapping[str, str]) -> Finding | None:
    check = f"password of {server.setting}"
    if server.scheme == "unix" or (server.is_local and not server.hosts):
        return ok(check, "a socket: the mode of its file decides who may connect")
    if server.scheme in ("http", "https", "smtp", "smtps") and not server.password:
        return None
    if not server.password:
        if server.scheme == "postgresql":
            if "PGPASSWORD" in environment or "PGPASSFILE" in environment or "sslcert" in server.options:
                return ok(check, "outside of the URL: PGPASSWORD, PGPASSFILE or a certificate")
            advice = "see that pg_hba.conf lets no one in without a password or certificate"
            return warn(check, "none in the URL; it may come from ~/.pgpass", advice)
        missing = "guest/guest, the default" if server.scheme.startswith("amqp") else "none"
        return fail(check, missing, f"set one at the server, and in {server.setting}")
    if (weak := weakness(server.password, server.user)) is not None:
        return fail(check, f"it {weak}", "make one: openssl rand -hex 24")
    if server.user in _ADMINISTRATORS:
        advice = "make a user that owns the database of Penstock and no other"
        return warn(check, f"{server.user} is the server's administrator", advice)
    return ok(check, "set, and not a default")
