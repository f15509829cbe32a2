from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from penstock.config.errors import DuplicateKind, KindError, UndecodableMessage
from penstock.schemas import Job, RetryPolicy, Sensitive, registry, upcasts


def test_options_of_a_job_class_are_found_under_its_kind() -> None:
    class Pay(
        Job,
        kind="t.pay",
        queue="money",
        version=3,
        retry=RetryPolicy(max_attempts=8),
        timeout=30,
        delivery="once",
        unique_by=("order",),
        aliases=("t.charge",),
        priority="high",
        expires_in=timedelta(hours=1),
    ):
        order: int

    kind = registry["t.pay"]
    assert kind is registry["t.charge"] is Pay.kind()
    assert (kind.queue, kind.version, kind.retry.max_attempts, kind.delivery) == ("money", 3, 8, "once")
    assert (kind.timeout, kind.expires_in) == (timedelta(seconds=30), timedelta(hours=1))


def test_a_job_is_frozen_and_refuses_unknown_and_wrong_fields() -> None:
    class Pay(Job, kind="t.pay"):
        order: int

    job = Pay(order=7)
    with pytest.raises(ValidationError):
        job.order = 8  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Pay(order=7, extra=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Pay(order="seven")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_json_has_not_is_refused(value: float) -> None:
    class Weighed(Job, kind="t.weighed"):
        weight: float

    with pytest.raises(ValidationError, match="finite"):
        Weighed(weight=value)


def test_a_second_class_with_the_same_kind_or_alias_is_refused() -> None:
    class First(Job, kind="t.one", aliases=("t.old",)): ...

    with pytest.raises(DuplicateKind, match=r"t\.one.*First"):

        class Second(Job, kind="t.one"): ...

    with pytest.raises(DuplicateKind, match=r"t\.old"):

        class Third(Job, kind="t.three", aliases=("t.old",)): ...

    assert registry.find("t.three") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": "dispatcher"}, "dispatcher's own"),
        ({"queue": "a b"}, "queue 'a b'"),
        ({"version": 0}, "version"),
        ({"delivery": "twice"}, "at_least_once"),
        ({"priority": "urgent"}, "high, normal, low"),
        ({"delivery": "once", "track": False}, "ledger"),
        ({"delivery": "at_most_once", "track": False}, "ledger"),
        ({"unique_by": ("nope",)}, "nope"),
        ({"unique_by": "order"}, "sequence"),
        ({"timeout": 0}, "timeout"),
        ({"max_crashes": 0}, "max_crashes"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KindError, match=message):

        class Wrong(Job, kind="t.wrong", **options):
            order: int

    assert registry.find("t.wrong") is None


def test_a_class_without_a_kind_is_a_base_and_cannot_be_sent() -> None:
    class Base(Job):
        order: int

    class Pay(Base, kind="t.pay"): ...

    assert Pay(order=1).kind().name == "t.pay"
    with pytest.raises(KindError, match="no kind"):
        Base(order=1).kind()


def test_sensitive_fields_show_as_stars_and_travel_as_they_are() -> None:
    class Login(Job, kind="t.login"):
        user: str
        password: Sensitive[str]

    job = Login(user="ada", password="s3cret")
    assert "s3cret" not in repr(job) + str(job)
    assert job.redacted() == {"user": "ada", "password": "***"}
    assert job.model_dump()["password"] == "s3cret"


def test_a_secret_that_would_not_survive_the_wire_is_refused() -> None:
    with pytest.raises(KindError, match="Sensitive"):

        class Login(Job, kind="t.login"):
            password: SecretStr


def test_upcasters_lift_a_payload_version_by_version() -> None:
    class Greet(Job, kind="t.greet", version=3):
        first: str
        last: str

    @upcasts(Greet, from_version=1)
    def one(payload: dict[str, Any]) -> dict[str, Any]:
        return {"full": payload["name"]}

    with pytest.raises(UndecodableMessage, match="no upcaster from version 2"):
        registry.upcast(Greet.kind(), {"name": "Ada Lovelace"}, 1)

    @upcasts(Greet, from_version=2)
    def two(payload: dict[str, Any]) -> dict[str, Any]:
        first, last = payload["full"].split()
        return {"first": first, "last": last}

    assert registry.upcast(Greet.kind(), {"name": "Ada Lovelace"}, 1) == {"first": "Ada", "last": "Lovelace"}
    with pytest.raises(UndecodableMessage, match="newer than version 3"):
        registry.upcast(Greet.kind(), {}, 4)
    with pytest.raises(UndecodableMessage, match="failed"):
        registry.upcast(Greet.kind(), {"full": "Plato"}, 2)


@pytest.mark.parametrize("version", [0, 2, 3])
def test_an_upcaster_from_a_version_that_is_not_old_is_refused(version: int) -> None:
    class Greet(Job, kind="t.greet", version=2): ...

    with pytest.raises(KindError, match="from_version"):
        upcasts(Greet, from_version=version)(lambda payload: payload)


def test_changes_are_validated_again() -> None:
    class Pay(Job, kind="t.pay"):
        order: int

    assert Pay(order=1).with_changes({"order": 2}).order == 2
    with pytest.raises(ValidationError):
        Pay(order=1).with_changes({"order": "x"})


def test_nested_models_are_fine() -> None:
    class Item(BaseModel):
        name: str

    class Buy(Job, kind="t.buy"):
        items: list[Item]

    assert Buy(items=[{"name": "pen"}]).items[0].name == "pen"  # type: ignore[list-item]
