"""Isolated handlers see the variables that they need, and none of their worker's secrets."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from workers.executor.bench import Bench
from workers.executor.misbehaving.attack_jobs import Look

from penstock.config.settings import Settings
from penstock.workers.executor.attempt.child.environment import allowed

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-marker",
    "DATABASE_URL": "url-marker",
    "PENSTOCK_DATABASE_URL": "ledger-marker",
    "PENSTOCK_TOKEN_SECRET": "token-marker-of-16",
    "HTTPS_PROXY": "http://user:proxy-marker@proxy.example.com",
    "MY_PASSWORD": "my-marker",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "LC_PAPER": "de_DE", "MY_REGION": "eu"}.items():
        monkeypatch.setenv(name, value)


def look(bench: Bench, **settings: Any) -> dict[str, Any]:
    bench.settings = bench.settings.model_copy(update=settings)
    bench.worker()
    seen: dict[str, Any] = bench.run(Look()).result
    return seen


def test_secrets_of_the_worker_are_absent_in_the_child_and_what_it_starts(bench: Bench) -> None:
    seen = look(bench)
    for environment in (seen["own"], seen["of a process"]):
        assert not set(SECRETS) & set(environment)
        assert "MY_REGION" not in environment
        assert environment["LC_PAPER"] == "de_DE"
        assert environment["PATH"]
    assert "marker" not in str(seen)


def test_the_memory_that_shows_the_first_environment_is_empty(bench: Bench) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux shows it")
    assert look(bench)["first"].strip("\0") == ""


def test_the_settings_of_the_worker_reach_the_child_all_the_same(bench: Bench) -> None:
    assert look(bench)["database"] == [bench.settings.database_url] * 2


def test_variables_that_the_settings_name_are_there(bench: Bench) -> None:
    seen = look(bench, isolated_env=("MY_*", "DATABASE_URL"))["own"]
    assert {name: seen.get(name) for name in ("MY_PASSWORD", "MY_REGION", "DATABASE_URL")} == {
        "MY_PASSWORD": "my-marker",
        "MY_REGION": "eu",
        "DATABASE_URL": "url-marker",
    }
    assert "AWS_SECRET_ACCESS_KEY" not in seen


def test_the_names_of_the_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="isolated_env"):
        Settings(isolated_env=("MY-*",))


def test_no_allowed_name_is_one_of_a_secret() -> None:
    secret = ("AWS_SESSION_TOKEN", "SECRET_KEY", "PENSTOCK_BROKER_URL", "PENSTOCK_SYNCS", "PENSTOCK_FLOWER_BASIC_AUTH")
    assert allowed(dict.fromkeys(secret, "x"), ()) == {}
