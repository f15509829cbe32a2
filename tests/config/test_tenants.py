"""Settings of tenants: those that would let one tenant into another's data are refused, with what to write instead."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.stack import PENSTOCK

from penstock.config.errors import ConfigError
from penstock.config.sections.builtin.emails import EmailsSettings
from penstock.config.settings import load_settings

REPORT = '[reports.sales]\nsql = "SELECT 1 WHERE t = :tenant"\n'
SYNC = '[syncs.orders]\nurl = "https://api.example.com/{url}"\ntable = "{table}"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "penstock.toml"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('tenant_storage_prefix = "files"', "must have {tenant} once"),
        ('tenant_storage_prefix = "{tenant}"', "such as tenants/{tenant}"),
        ('tenant_storage_prefix = "a/{tenant}/{tenant}"', "must have {tenant} once"),
        ('tenant_storage_prefix = "a/{tenant}-{name}"', "must have {tenant} once"),
        ('tenant_storage_prefix = "/a/{tenant}"', "is not a folder"),
        ('tenant_storage_prefix = "a/../{tenant}"', "is not a folder"),
        ('tenant_storage_prefix = "results/{tenant}"', "overlaps results/"),
        ('tenant_storage_prefix = "uploads/{tenant}"', "change one of tenant_storage_prefix and `prefix` of [uploads]"),
        ('[uploads]\nprefix = "tenants/new"', "change one of tenant_storage_prefix and `prefix` of [uploads]"),
        ('[uploads]\nprefix = "uploads/{tenant}"', "leave {tenant} out"),
        ('[uploads]\nprefix = "../tenants"', "is not a folder"),
        ("[emails.senders]\nacme = []", "name an address for 'acme'"),
        ('[emails.senders]\nacme = "nowhere"', "not an address"),
        ('[emails.senders]\n"*" = "{tenant}"', "not an address"),
        (f'{REPORT}parameters = {{ tenant = "str" }}', "parameter 'tenant' is the job's tenant; remove it"),
        (f"{REPORT}tenants = []", "name one tenant at least"),
        (f'{REPORT}tenants = ["acme", ""]', "name one tenant at least"),
        (SYNC.format(url="{tenant}", table="orders"), 'write table = "orders_{tenant}"'),
        (SYNC.format(url="all", table="orders_{tenant}"), "write it in url, headers or params too"),
        (SYNC.format(url="{tenant}", table="{tenant}"), "after a name and '_'"),
        (SYNC.format(url="{tenant}", table="{tenant}_orders"), "after a name and '_'"),
        (SYNC.format(url="{tenant}", table="pen{tenant}"), "after a name and '_'"),
        (SYNC.format(url="{tenant}", table="penstock_{tenant}"), "a table of Penstock's own"),
        ('[hooks.shop]\nsecret = "whsec_c2VjcmV0"\ntenants = []', "name one tenant at least"),
    ],
)
def test_settings_that_do_not_keep_tenants_apart_are_refused(file: Path, toml: str, message: str) -> None:
    file.write_text(toml)
    with pytest.raises(ConfigError) as refused:
        load_settings(file)
    assert message in str(refused.value)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("command", [["doctor"], ["worker", "--queues", "emails"]])
def test_nothing_starts_with_such_settings(file: Path, command: list[str]) -> None:
    file.write_text('tenant_storage_prefix = "files"')
    ended = subprocess.run([PENSTOCK, *command], cwd=file.parent, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "tenants/{tenant}" in ended.stdout + ended.stderr


def test_names_of_tenants_and_their_placeholder_are_read(file: Path) -> None:
    file.write_text(
        'tenant_storage_prefix = "customers/{tenant}/files"\n'
        '[emails.senders]\nacme = "a@acme.example"\n"*" = ["{tenant}@example.com"]\n'
        f'{REPORT}tenants = "acme"\n' + SYNC.format(url="{tenant}", table="of_{tenant}.orders")
    )
    settings = load_settings(file)
    assert settings.emails.senders_of("acme") == ("a@acme.example",)
    assert settings.emails.senders_of("third") == ("third@example.com",)
    assert EmailsSettings().senders_of("third") == ("Penstock <penstock@localhost>",)
    report, sync = settings.reports["sales"], settings.syncs["orders"]
    assert [report.is_for(tenant) for tenant in ("acme", "third", None)] == [True, False, False]
    assert [sync.is_for(tenant) for tenant in ("acme", "third", None)] == [True, True, False]
    assert (sync.filled("acme").url, sync.filled("acme").table) == ("https://api.example.com/acme", "of_acme.orders")
