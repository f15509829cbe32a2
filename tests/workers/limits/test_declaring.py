"""Declarations of limits, which are refused, and which hold for which job."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from penstock.config.errors import ConfigError, KindError
from penstock.config.settings import Settings, load_settings
from penstock.producers.limits.rules import Rule, Rules
from penstock.schemas import Concurrency, Job, Rate, registry
from penstock.schemas.jobs.limits import Limit
from penstock.schemas.wire.codec import Message, decode, encode
from penstock.workers import handles
from penstock.workers.engines.boot_checks import check_settings
from penstock.workers.handlers.registry import Handlers, handlers


class Charge(
    Job,
    kind="declared.charge",
    queue="declared",
    limits=(Concurrency(5, by="tenant"), Rate(100, per=60, by="account"), Rate(10, per=timedelta(seconds=1))),
):
    account: int = 0


class Bare(Job, kind="declared.bare", queue="declared", aliases=["declared.old"]):
    tenant: str = "of the field"


class Loose(Job, kind="declared.loose", queue="declared", track=False): ...


@handles(Charge)
async def charge(job: Charge) -> None: ...


@handles(Bare)
async def bare(job: Bare) -> None: ...


@handles(Loose)
async def loose(job: Loose) -> None: ...


@pytest.fixture
def declared_handlers() -> Handlers:
    registry = Handlers()
    for handler in handlers:
        if handler.kind.queue == "declared":
            registry.add(handler)
    return registry


def settings(**options: Any) -> Settings:
    return Settings(**({"broker_url": "redis://127.0.0.1:9/0", "database_url": "sqlite://"} | options))


def sent(job: Job, **options: Any) -> Message:
    return decode(encode(job, **options))


def names(job: Job, **options: Any) -> list[str]:
    message = sent(job)
    return [rule.name for rule in Rules(settings(**options)).of(message.kind, message.queue)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Concurrency(0), "integers from 1"),
        (lambda: Concurrency(1.5), "integers from 1"),  # type: ignore[arg-type]
        (lambda: Rate(True, per=1), "integers from 1"),
        (lambda: Rate(1, per=1, burst=0), "integers from 1"),
        (lambda: Rate(1, per=0), "more than zero"),
        (lambda: Rate(1, per=timedelta(seconds=-1)), "more than zero"),
    ],
)
def test_numbers_out_of_bounds_are_refused(make: Any, expected: str) -> None:
    with pytest.raises(KindError, match=expected):
        make()


@pytest.fixture
def no_kind_stays() -> Iterator[None]:
    yield
    if (kind := registry.find("declared.wrong")) is not None:
        registry.discard(kind)


@pytest.mark.usefixtures("no_kind_stays")
@pytest.mark.parametrize(
    ("limits", "options", "expected"),
    [
        ([Concurrency(1, by="acount")], {}, "by 'acount' needs a field of that name, or one of queue, tenant, key"),
        ([Concurrency(1)], {"track": False}, "remove track=False"),
        ([Rate(1, per=60), Rate(2, per=60)], {}, "two limits 'rate-60s'"),
    ],
)
def test_limits_that_cannot_hold_are_refused_with_the_class(
    limits: list[Limit], options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(KindError, match=expected):

        class Wrong(Job, kind="declared.wrong", limits=limits, **options):
            account: int


def test_a_limit_is_named_after_its_kind_without_its_number() -> None:
    assert names(Charge()) == [
        "declared.charge/concurrency-by-tenant",
        "declared.charge/rate-60s-by-account",
        "declared.charge/rate-1s",
    ]


def test_settings_add_limits_over_kinds_aliases_and_queues() -> None:
    limits = {"pair": {"kinds": ["declared.old"], "concurrency": 3, "rate": 7, "per": 2}}
    assert names(Bare(), limits=limits) == ["pair/concurrency", "pair/rate-2s"]
    limits = {"all": {"queues": ["declared"], "concurrency": 3, "by": "key"}}
    assert names(Bare(), limits=limits) == ["all/concurrency-by-key"]
    assert names(Charge(), limits=limits)[-1] == "all/concurrency-by-key"
    assert names(Bare(), limits={"other": {"queues": ["elsewhere"], "concurrency": 3}}) == []


def test_jobs_of_one_value_share_and_others_do_not() -> None:
    by_tenant = Rule("r", Concurrency(1, by="tenant"))
    slots = {by_tenant.slot(sent(Bare(), tenant=tenant)) for tenant in ("a", "b", "a", None)}
    assert len(slots) == 3
    assert by_tenant.slot(sent(Bare(tenant="b"), tenant="a")) in slots  # not the field of that name
    by_account = Rule("r", Concurrency(1, by="account"))
    assert by_account.slot(sent(Charge(account=1))) != by_account.slot(sent(Charge(account=2)))
    assert by_account.slot(sent(Charge(account=1))) == by_account.slot(sent(Charge(account=1)))
    assert Rule("r", Concurrency(1)).slot(sent(Charge(account=1))) == "r:"


def test_the_name_of_a_slot_does_not_reveal_the_tenant() -> None:
    assert "ada" not in Rule("r", Concurrency(1, by="tenant")).slot(sent(Bare(), tenant="ada"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("concurrency = 5", "name the kinds or queues"),
        ('queues = ["a"]', "give it concurrency, rate or both"),
        ('queues = ["a"]\nconcurrency = 1\nburst = 5', "per and burst go with rate"),
        ('queues = ["a"]\nconcurrency = 0', "greater than or equal to 1"),
        ('queues = ["a"]\nconcurency = 1', "unknown setting"),
    ],
)
def test_a_wrong_limit_in_the_file_is_refused_with_its_place(tmp_path: Path, lines: str, expected: str) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(f"[limits.api]\n{lines}\n")
    with pytest.raises(ConfigError, match=expected) as refused:
        load_settings(file)
    assert "limits.api" in str(refused.value)
    assert str(file) in str(refused.value)


def refused(declared_handlers: Handlers, **options: Any) -> str:
    with pytest.raises(KindError) as error:
        check_settings(declared_handlers, settings(**options), ["declared"])
    return str(error.value)


def test_a_limit_without_a_store_is_refused_when_the_worker_boots(declared_handlers: Handlers) -> None:
    message = refused(declared_handlers, broker_url="amqp://guest:guest@127.0.0.1:9//")
    assert "kind 'declared.charge' has limit 'declared.charge/concurrency-by-tenant' (5 at a time by tenant)" in message
    assert f"{__file__}:" in message
    assert "PENSTOCK_LIMITS_URL" in message
    assert "declared.bare" not in message


def test_the_store_may_be_any_redis(declared_handlers: Handlers) -> None:
    check_settings(declared_handlers, settings(), ["declared"])
    elsewhere = settings(broker_url="amqp://guest:guest@127.0.0.1:9//", limits_url="redis://127.0.0.1:9/1")
    check_settings(declared_handlers, elsewhere, ["declared"])
    message = refused(declared_handlers, limits_url="amqp://guest:guest@127.0.0.1:9//")
    assert "set PENSTOCK_LIMITS_URL to a redis:// URL" in message


def test_kinds_of_other_queues_need_no_store(declared_handlers: Handlers) -> None:
    check_settings(declared_handlers, settings(broker_url="amqp://guest:guest@127.0.0.1:9//"), ["another"])


def test_settings_that_a_kind_cannot_keep_are_refused_when_the_worker_boots(declared_handlers: Handlers) -> None:
    assert "remove track=False" in refused(
        declared_handlers, limits={"all": {"kinds": ["declared.loose"], "concurrency": 1}}
    )
    message = refused(declared_handlers, limits={"all": {"kinds": ["declared.bare"], "rate": 1, "by": "account"}})
    assert "kind 'declared.bare' has limit 'all/rate-1s-by-account' (1 per 1 s by account), and no field" in message


def test_a_misspelt_kind_in_the_file_is_named_when_the_worker_boots(
    declared_handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"declared.chrage": {"timeout": "1m"}, "declared.charge": {}, "elsewhere.only": {}}
    limits = {"all": {"kinds": ["declared.bar"], "rate": 1}}
    check_settings(declared_handlers, settings(kinds=kinds, limits=limits), ["declared"])
    assert [record.getMessage() for record in caplog.records] == [
        "[kinds.\"declared.chrage\"] is for kind 'declared.chrage', which no module imported here defines; did you "
        "mean 'declared.charge'?",
        "[limits.all] is for kind 'declared.bar', which no module imported here defines; did you mean 'declared.bare'?",
    ]
