"""This machine: the user of the process, its umask, and the modes of files with data or secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from penstock.config.settings import Settings
from penstock.workers.cli.doctor.production.servers import servers
from penstock.workers.telemetry.findings import Finding, fail, ok, warn


@dataclass(frozen=True, slots=True)
class Machine:
    """The user of the process, by number, and its umask and environment."""

    uid: int
    umask: int
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Machine:
        umask = os.umask(0o077)
        os.umask(umask)  # it can only be read by setting it
        return cls(os.geteuid(), umask, dict(os.environ))


def review(settings: Settings, machine: Machine) -> Iterator[Finding]:
    yield _user(machine)
    yield _umask(machine)
    yield _files(settings)
    if settings.file is not None:
        yield _configuration(settings, settings.file)


def _user(machine: Machine) -> Finding:
    if machine.uid == 0:
        advice = "run it as a user of its own, as infra/systemd and infra/docker do"
        return fail("user", "root: a fault in a handler is then a fault of the whole machine", advice)
    return ok("user", f"not root (uid {machine.uid})")


def _umask(machine: Machine) -> Finding:
    advice = "set umask 0077 (systemd: UMask=0077)"
    if machine.umask & 0o002 == 0:
        return fail("umask", f"{machine.umask:04o}: everyone here may change what handlers write", advice)
    if machine.umask & 0o004 == 0:
        return warn("umask", f"{machine.umask:04o}: everyone here may read what handlers write", advice)
    return ok("umask", f"{machine.umask:04o}")


def _files(settings: Settings) -> Finding:
    """Files and folders with data that others on this machine may read or change."""
    open_paths = [f"{path} ({mode:04o})" for path in _data(settings) if (mode := _mode(path)) & 0o077]
    if open_paths:
        advice = "close them: chmod 0700 for folders, 0600 for files"
        return fail("file modes", f"others may use {', '.join(open_paths)}", advice)
    return ok("file modes", "folders 0700, files 0600")


def _data(settings: Settings) -> Iterator[Path]:
    """Existing files and folders with data: the ledger, objects, mail, and those below `var`."""
    paths = [Path("var"), Path("var/flower"), Path("var/penstock.env"), Path("var/gateway.key")]
    for url in (settings.storage_url, settings.smtp_url):
        if (parts := urlsplit(url)).scheme in ("file", "maildir"):
            paths.append(Path(unquote(parts.path)))
    for server in servers(settings):
        if server.scheme == "sqlite" and (name := unquote(server.parts.path).removeprefix("/")):
            paths += [Path(f"{name}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")]
    yield from (path for path in dict.fromkeys(paths) if path.exists())


def _configuration(settings: Settings, file: Path) -> Finding:
    check, mode = "mode of penstock.toml", _mode(file)
    if mode & 0o022:
        return fail(check, f"{file} ({mode:04o}): others may change it", f"chmod 0640 {file}")
    if mode & 0o004 and (names := list(_secrets(settings, file.read_text("utf-8")))):
        advice = "put them into the environment, or chmod 0640"
        return fail(check, f"{file} ({mode:04o}): everyone here may read {', '.join(names)}", advice)
    return ok(check, f"{file} ({mode:04o})")


def _secrets(settings: Settings, text: str) -> Iterator[str]:
    """Names of the settings whose secret is in this text."""
    for server in servers(settings):
        if (password := server.parts.password) and password in text:
            yield server.setting
    if settings.token_secret is not None and settings.token_secret in text:
        yield "token_secret"
    for section in ("webhooks", "hooks"):
        for name, entry in getattr(settings, section).items():
            if any("${" not in secret and secret in text for secret in entry.secret):
                yield f"{section}.{name}.secret"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
