"""Operators' ways in: Flower, Celery's remote control, and switches for developers that were left on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

from penstock.config.settings import Settings
from penstock.workers.cli.doctor.production.finding import Finding, fail, ok, warn, weakness

_BASIC_AUTH = "PENSTOCK_FLOWER_BASIC_AUTH"
_DEBUGGING = ("PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONINSPECT", "FLOWER_DEBUG")
_OFF = {"", "0", "false", "no", "off"}


def review(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    yield _login(environment)
    yield _api(environment)
    yield _remote_control(settings.remote_control)
    yield _admins(settings)
    yield _debugging(environment)


def _login(environment: Mapping[str, str]) -> Finding:
    check, login = "Flower: login", environment.get(_BASIC_AUTH, "")
    if not login:
        advice = f"set {_BASIC_AUTH}=user:password for Flower, in a file with mode 0600"
        return warn(check, "not set here; Flower makes a password at each start and prints it", advice)
    user, _, password = login.partition(":")
    if not (user and password) or (weak := weakness(password, user)) is not None:
        reason = f"its password {weak}" if user and password else "it is not user:password"
        return fail(check, reason, f"set {_BASIC_AUTH}=user:$(openssl rand -hex 12)")
    return ok(check, f"as {user}")


def _api(environment: Mapping[str, str]) -> Finding:
    check = "Flower: API"
    if environment.get("FLOWER_UNAUTHENTICATED_API", "").lower() not in _OFF:
        return fail(check, "FLOWER_UNAUTHENTICATED_API opens it to everyone", "unset it")
    return ok(check, "asks for the login too")


def _remote_control(control: str) -> Finding:
    check = "remote control"
    if control == "all":
        advice = 'set remote_control = "inspect": Flower then shows everything, and stops no worker'
        return warn(check, "all: who may write to the broker can stop workers and change their pools", advice)
    return ok(check, control)


def _admins(settings: Settings) -> Finding:
    check, admins = "Flower: acts", settings.flower_admins
    if admins is None and settings.remote_control == "all":
        advice = 'set flower_admins = ["…"] to those who may act; the others then only look'
        return warn(check, "everyone who is logged in may stop workers and jobs", advice)
    return ok(
        check,
        "refused by the workers" if settings.remote_control != "all" else f"by {', '.join(admins or ()) or 'nobody'}",
    )


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
