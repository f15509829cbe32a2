"""Operators' ways in: Flower, Celery's remote control, and switches for developers that were left on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

from penstock.config.sections.console import ConsoleSettings
from penstock.config.settings import Settings
from penstock.workers.telemetry.findings import Finding, fail, ok, warn, weakness

_BASIC_AUTH = "PENSTOCK_FLOWER_BASIC_AUTH"
_DEBUGGING = ("PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONINSPECT", "FLOWER_DEBUG")
_MOST_PROXIES = 2**16
"""Addresses of a network that may be those of a proxy, as of the pods of a cluster's node."""
_LEAST_SECRET = 32
_OFF = {"", "0", "false", "no", "off"}


def review(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    yield _login(settings, environment)
    yield _proxy(settings.console)
    yield _sessions(environment)
    yield _metrics(settings.console)
    yield _remote_control(settings.remote_control)
    yield _roles(settings, environment)
    yield _debugging(environment)


def _login(settings: Settings, environment: Mapping[str, str]) -> Finding:
    check, login = "Flower: login", environment.get(_BASIC_AUTH, "")
    if not login:
        users = [user.name for user in settings.console.users if user.password_hash]
        ways = [f"by a password: {', '.join(users)}"] if users else []
        ways += ["through a proxy"] if settings.console.proxy_header else []
        ways += ["by OAuth"] if environment.get("FLOWER_AUTH") else []
        if ways:
            return ok(check, "; ".join(ways))
        advice = "name who may log in: [[console.users]] with a hash by penstock console hash-password"
        return warn(check, "none is set here; Flower makes a password at each start and prints it", advice)
    user, _, password = login.partition(":")
    if not (user and password) or (weak := weakness(password, user)) is not None:
        reason = f"its password {weak}" if user and password else "it is not user:password"
        return fail(check, reason, f"set {_BASIC_AUTH}=user:$(openssl rand -hex 12)")
    return ok(check, f"as {user}")


def _proxy(console: ConsoleSettings) -> Finding:
    check = "Flower: proxy"
    if console.proxy_header is None:
        return ok(check, "none is trusted")
    wide = [str(network) for network in console.proxies if network.num_addresses > _MOST_PROXIES]
    if wide:
        detail = f"everyone in {', '.join(wide)} can name any person in the header {console.proxy_header}"
        return fail(check, detail, "name the proxy's own addresses in proxies of [console]")
    return ok(check, f"{console.proxy_header} from {', '.join(map(str, console.proxies))}")


def _sessions(environment: Mapping[str, str]) -> Finding:
    check, secret = "Flower: sessions", environment.get("FLOWER_COOKIE_SECRET", "")
    if not environment.get("FLOWER_AUTH"):
        return ok(check, "none")
    if not secret:
        advice = "set FLOWER_COOKIE_SECRET=$(openssl rand -hex 32), the same for every Flower"
        return warn(check, "sessions end with each start, as FLOWER_COOKIE_SECRET is not set", advice)
    if (weak := weakness(secret, least=_LEAST_SECRET)) is not None:
        return fail(check, f"FLOWER_COOKIE_SECRET {weak}", "set FLOWER_COOKIE_SECRET=$(openssl rand -hex 32)")
    return ok(check, "signed")


def _metrics(console: ConsoleSettings) -> Finding:
    check = "Flower: metrics"
    if not console.metrics_login:
        return warn(check, "/metrics is open to everyone who reaches Flower", "set metrics_login = true in [console]")
    return ok(check, "ask for the login too")


def _remote_control(control: str) -> Finding:
    check = "remote control"
    if control == "all":
        advice = 'set remote_control = "inspect": Flower then shows everything, and stops no worker'
        return warn(check, "all: who may write to the broker can stop workers and change their pools", advice)
    return ok(check, control)


def _roles(settings: Settings, environment: Mapping[str, str]) -> Finding:
    check, console, older = "Flower: acts", settings.console, settings.flower_admins
    by_environment = bool(environment.get(_BASIC_AUTH))
    by_oauth = bool(environment.get("FLOWER_AUTH")) and not console.roles
    if older is None and by_oauth:
        advice = 'say in [console.roles] who has which role, such as "*@example.com" = "viewer"'
        return warn(check, "everyone who logs in by OAuth is an admin", advice)
    if older is None and by_environment and environment.get("FLOWER_BASIC_AUTH"):
        advice = "give each a role in [[console.users]], or set flower_admins to those who may act"
        return warn(check, "everyone in PENSTOCK_FLOWER_BASIC_AUTH and FLOWER_BASIC_AUTH is an admin", advice)
    names = [user.name for user in console.users if user.role != "viewer"]
    patterns = [name for name, role in {**console.roles, **console.groups}.items() if role != "viewer"]
    older_names = older if older is not None else ["the login of the environment"] if by_environment else []
    return ok(check, f"by {', '.join([*names, *patterns, *older_names]) or 'no one'}")


def _debugging(environment: Mapping[str, str]) -> Finding:
    check = "debugging"
    switches = [name for name in _DEBUGGING if environment.get(name, "").lower() not in _OFF]
    if _django_debugs(environment):
        switches.append(f"DEBUG of {environment['DJANGO_SETTINGS_MODULE']}")
    if switches:
        return fail(check, f"on: {', '.join(switches)}", "turn it off: it shows values and slows everything")
    return ok(check, "off")


def _django_debugs(environment: Mapping[str, str]) -> bool:
    module = environment.get("DJANGO_SETTINGS_MODULE")
    if not module:
        return False
    sys.path.insert(0, os.getcwd())  # as Django's own manage.py does
    try:
        from django.conf import settings as django_settings

        return bool(django_settings.DEBUG)
    except Exception:  # wrong settings are the check of handlers
        return False
    finally:
        sys.path.remove(os.getcwd())
