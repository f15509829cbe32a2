"""`[console]`: users, their passwords, and people whom a proxy or OAuth names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.config.errors import ConfigError
from penstock.config.sections.console import ConsoleSettings
from penstock.config.sections.passwords import PasswordHash, hash_password
from penstock.config.settings import load_settings

HASH = hash_password("correct horse")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)


def load(text: str) -> ConsoleSettings:
    Path("penstock.toml").write_text(text)
    return load_settings().console


def test_a_hash_matches_its_password_only_and_says_how_it_was_made() -> None:
    parsed = PasswordHash.parse(HASH)
    assert parsed.matches("correct horse")
    assert not parsed.matches("correct horse ")
    assert not parsed.matches("")
    assert HASH.startswith("scrypt$16384$8$1$")
    assert hash_password("correct horse") != HASH, "each has a salt of its own"
    assert "correct" not in HASH


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("correct horse", "is not a hash"),
        ("md5$1$1$1$AAAA$AAAA", "is not a hash"),
        (HASH.replace("16384", "many"), "is not a hash"),
        (HASH.replace("$8$", "$8$8$"), "is not a hash"),
        (HASH[:-4] + "()[]", "is not a hash"),
        (HASH.replace("16384", "1024"), "weak"),
        (HASH.replace("16384", "16385"), "weak"),
        (HASH[:-20] + "=", "hash"),
        (HASH.replace("16384", "1073741824"), "256 MiB"),
    ],
    ids=["words", "another form", "no number", "a part too many", "no base64", "cheap", "no power", "short", "dear"],
)
def test_what_is_not_a_hash_is_refused_without_showing_it(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refusal:
        load(f'[[console.users]]\nname = "ada"\npassword_hash = "{text}"\n')
    assert "password_hash" in str(refusal.value)
    assert text not in str(refusal.value)


@pytest.mark.parametrize("password", ["", "a\nb", "x" * 1025])
def test_passwords_that_cannot_be_typed_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        hash_password(password)


def test_a_user_has_a_role_and_bounds() -> None:
    console = load(
        f'[[console.users]]\nname = "ada"\npassword_hash = "{HASH}"\nrole = "operator"\nkinds = "invoice.*"\n'
        'tenants = ["acme"]\n[[console.users]]\nname = "bob@example.com"\n'
    )
    ada, bob = console.users
    assert (ada.role, ada.kinds, ada.queues, ada.tenants) == ("operator", ("invoice.*",), None, ("acme",))
    assert ada.is_bounded
    assert (bob.role, bob.password_hash, bob.is_bounded) == ("viewer", None, False)
    assert HASH not in repr(console)
    assert console.metrics_login


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[console.users]]\nname = "a:b"\n', "not a name"),
        ('[[console.users]]\nname = ""\n', "not a name"),
        ('[[console.users]]\nname = "ada"\n[[console.users]]\nname = "ada"\n', "twice"),
        ('[[console.users]]\nname = "ada"\nrole = "root"\n', "role"),
        ('[console]\nproxy_header = "X-Forwarded-User"\n', "lets no one in"),
        ('[console]\ngroups_header = "X-Groups"\n', "proxy_header"),
        ('[console]\nproxy_header = "X-User"\n[console.groups]\nops = "admin"\n', "groups_header"),
        ('[console]\nproxy_header = "X User"\n[console.roles]\n"*" = "viewer"\n', "proxy_header"),
        ('[console]\nproxy_header = "X-User"\nproxies = []\n[console.roles]\n"*" = "viewer"\n', "proxies"),
        ('[console]\nproxies = ["10.0.0.1/8"]\n', "proxies"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(text)


def settings(**values: Any) -> ConsoleSettings:
    return ConsoleSettings(proxy_header="X-Forwarded-User", **values)


def test_only_the_addresses_of_the_proxy_are_trusted() -> None:
    console = settings(roles={"*": "viewer"}, proxies=["127.0.0.1/32", "10.1.0.0/16", "fd00::/8"])
    trusted = ("127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "fd00::1")
    assert all(console.trusts(address) for address in trusted)
    assert not any(console.trusts(address) for address in ("127.0.0.2", "10.2.0.1", "::1", "", "unix", "0.0.0.0"))


def test_the_highest_role_of_name_and_groups_counts() -> None:
    console = settings(
        groups_header="X-Forwarded-Groups",
        groups={"ops": "operator", "root": "admin"},
        roles={"*@example.com": "viewer", "Ada@example.com": "operator"},
    )
    assert console.role_of("eve@elsewhere.org") is None
    assert console.role_of("bob@EXAMPLE.com") == "viewer"
    assert console.role_of("ada@example.com") == "operator"
    assert console.role_of("bob@example.com", ("ops", "staff")) == "operator"
    assert console.role_of("eve@elsewhere.org", ("root",)) == "admin"
