"""Wrong declarations are refused by their class statement, with what, where, and what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError, computed_field

from penstock.config.errors import KindError
from penstock.schemas import Concurrency, Job, Rate, RetryPolicy, registry
from penstock.schemas.jobs.job import KEYWORDS

NAN, INFINITY = float("nan"), float("inf")

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"quue": "x"}, "unknown keyword 'quue'; did you mean 'queue'?"),
    ({"time_out": 3}, "unknown keyword 'time_out'; did you mean 'timeout'?"),
    ({"frozn": True}, "unknown keyword 'frozn'; did you mean 'frozen'?"),
    ({"zzzzzz": 3}, "unknown keyword 'zzzzzz'; a job takes kind, queue, version, "),
    ({"kind": 5}, "kind 5 must be letters"),
    ({"kind": ""}, "kind '' must be letters"),
    ({"kind": "k" * 128}, "at most 127"),
    ({"kind": True}, "kind True must be letters"),
    ({"queue": None}, "queue None must be letters"),
    ({"queue": ("a",)}, r"queue ('a',) must be letters"),
    ({"queue": "q" * 128}, "at most 127"),
    ({"queue": "emails.high"}, "ends like a priority's lane"),
    ({"version": True}, "version must be an integer from 1 to 2147483647, not True"),
    ({"version": "2"}, "version must be an integer from 1 to 2147483647, not '2'"),
    ({"version": 2.0}, "version must be an integer from 1 to 2147483647, not 2.0"),
    ({"version": 2**31}, "version must be an integer from 1 to 2147483647"),
    ({"retry": 3}, "retry must be a RetryPolicy, such as RetryPolicy(max_attempts=3), not 3"),
    ({"retry": False}, "retry must be a RetryPolicy, not False"),
    ({"retry": {"max_attempts": 3}}, "retry must be a RetryPolicy, not {'max_attempts': 3}"),
    ({"retry": RetryPolicy}, "retry must be a RetryPolicy, not <class"),
    ({"timeout": "30s"}, "timeout must be a timedelta or a number of seconds, not '30s'"),
    ({"timeout": True}, "timeout must be a timedelta or a number of seconds, not True"),
    ({"timeout": -1}, "timeout must be more than zero, not -1"),
    ({"timeout": NAN}, "timeout must be at most a hundred years, not nan"),
    ({"timeout": INFINITY}, "timeout must be at most a hundred years, not inf"),
    ({"timeout": 10**400}, "timeout must be at most a hundred years"),
    ({"timeout": timedelta.max}, "timeout must be at most a hundred years"),
    ({"soft_timeout": 0}, "soft_timeout must be more than zero, not 0"),
    ({"soft_timeout": 5, "timeout": 5}, "soft_timeout must be less than timeout, which ends what ignores it"),
    ({"expires_in": "1h"}, "expires_in must be a timedelta or a number of seconds, not '1h'"),
    ({"expires_in": 0}, "expires_in must be more than zero, not 0"),
    ({"expires_in": -INFINITY}, "expires_in must be at most a hundred years, not -inf"),
    (
        {"delivery": "onec"},
        "delivery must be one of at_least_once, once, at_most_once, not 'onec'; did you mean 'once'?",
    ),
    ({"delivery": None}, "delivery must be one of at_least_once, once, at_most_once, not None"),
    ({"delivery": ["once"]}, "delivery must be one of at_least_once, once, at_most_once, not ['once']"),
    ({"priority": "hihg"}, "priority must be one of high, normal, low, not 'hihg'; did you mean 'high'?"),
    ({"priority": 1}, "priority must be one of high, normal, low, not 1"),
    ({"track": "no"}, "track must be True or False, not 'no'"),
    ({"track": 0}, "track must be True or False, not 0"),
    ({"unique_by": "order"}, "unique_by must be a sequence of names, such as ('order',)"),
    ({"unique_by": {"order"}}, "unique_by must be a sequence of names, such as a tuple, not {'order'}"),
    ({"unique_by": (3,)}, "unique_by must be a sequence of names, such as a tuple, not (3,)"),
    ({"unique_by": ("order", "order")}, "unique_by has a name twice: order, order"),
    ({"unique_by": ("ordr",)}, "unique_by names ordr, which it does not have as fields; did you mean 'order'?"),
    (
        {"unique": "rejct"},
        "unique must be one of reject, existing, replace, debounce, not 'rejct'; did you mean 'reject'?",
    ),
    ({"unique": True}, "unique must be one of reject, existing, replace, debounce, not True"),
    ({"unique": "reject", "unique_for": "1h"}, "unique_for must be a timedelta or a number of seconds, not '1h'"),
    ({"unique": "reject", "unique_for": NAN}, "unique_for must be at most a hundred years, not nan"),
    ({"unique": "reject", "unique_states": 3}, "unique_states must be a sequence of states, not 3"),
    ({"unique": "reject", "unique_states": (3,)}, "unique_states names 3; known are scheduled"),
    ({"unique": "reject", "unique_states": ("queud",)}, "unique_states names queud; known are"),
    ({"unique": "reject", "unique_states": ("queud",)}, "did you mean 'queued'?"),
    ({"unique": "debounce", "debounce": True}, "debounce must be a timedelta or a number of seconds, not True"),
    ({"unique": "debounce", "debounce": INFINITY}, "debounce must be at most a hundred years, not inf"),
    ({"aliases": "old.name"}, "aliases must be a sequence of names, such as ('old.name',)"),
    ({"aliases": (None,)}, "aliases must be a sequence of names, such as a tuple, not (None,)"),
    ({"aliases": ("a b",)}, "alias 'a b' must be letters"),
    ({"max_crashes": True}, "max_crashes must be an integer from 1 to 2147483647, not True"),
    ({"max_crashes": 1.5}, "max_crashes must be an integer from 1 to 2147483647, not 1.5"),
    ({"max_crashes": 2**40}, "max_crashes must be an integer from 1 to 2147483647"),
    ({"limits": 5}, "limits must be a sequence of Concurrency and Rate, not 5"),
    ({"limits": (5,)}, "limits must be a sequence of Concurrency and Rate, not (5,)"),
    ({"limits": (Concurrency(1), Concurrency(2))}, "it has two limits 'concurrency'"),
    ({"limits": Concurrency(1, by="ordr")}, "a limit by 'ordr' needs a field of that name"),
    ({"limits": Concurrency(1, by="ordr")}, "did you mean 'order'?"),
    ({"limits": Concurrency(1), "track": False}, "remove track=False"),
    ({"search": "order"}, "search must be a sequence of"),
    ({"search": (5,)}, "search must be a sequence of"),
    ({"search": ("ordr",)}, "search names ordr, which it does not have as fields; did you mean 'order'?"),
    ({"search": ("order",), "track": False}, "remove track=False"),
]


@pytest.mark.parametrize(("keywords", "message"), WRONG)
def test_a_wrong_class_keyword_is_refused_with_the_class_and_the_remedy(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KindError) as caught:

        class Wrong(Job, **({"kind": "t.wrong"} | keywords)):
            order: int = 0

    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{__name__}.test_a_wrong_class_keyword")
    assert "<locals>.Wrong" in str(caught.value)
    assert registry.find("t.wrong") is None


def test_a_wrong_value_of_every_class_keyword_is_tried() -> None:
    assert {name for keywords, _ in WRONG for name in keywords} >= set(KEYWORDS)


@pytest.mark.parametrize("keyword", [{"queue": "x"}, {"timeout": 5}, {"retry": RetryPolicy()}, {"unique_by": ("a",)}])
def test_a_class_without_a_kind_takes_no_keyword(keyword: dict[str, Any]) -> None:
    with pytest.raises(KindError, match=f"{next(iter(keyword))} given without a kind"):

        class Base(Job, **keyword):
            a: int


def test_pydantics_own_class_keywords_still_work() -> None:
    class Titled(Job, kind="t.titled", title="A title", str_strip_whitespace=True):
        text: str

    assert Titled(text=" x ").text == "x"
    assert Titled.model_config["title"] == "A title"


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize("name", ["kind", "redacted", "with_changes"])
def test_a_field_that_would_hide_a_method_of_the_job_is_refused(name: str) -> None:
    with pytest.raises(KindError, match=rf"field '{name}' would hide the method Job.{name}\(\)"):
        type(Job)("Hiding", (Job,), {"__annotations__": {name: str}, "__module__": __name__}, kind="t.hiding")


class Account(BaseModel):
    password: SecretStr


@pytest.mark.parametrize(
    "annotation", [SecretStr | None, list[SecretStr], dict[str, SecretStr], Account, list[Account]]
)
def test_a_secret_that_would_not_survive_the_wire_is_found_wherever_it_is(annotation: Any) -> None:
    with pytest.raises(KindError, match=r"Sensitive\[str\]"):
        type(Job)("Login", (Job,), {"__annotations__": {"login": annotation}, "__module__": __name__}, kind="t.login")


def test_a_field_that_would_not_travel_is_refused() -> None:
    with pytest.raises(KindError, match="total; make it a plain property"):

        class Computed(Job, kind="t.computed"):
            price: int

            @computed_field
            def total(self) -> int:
                return self.price * 2

    with pytest.raises(KindError, match="order is needed and has exclude=True"):

        class Excluded(Job, kind="t.excluded"):
            order: int = Field(exclude=True)

    with pytest.raises(KindError, match="order travels under the name 'orderId', by which no worker would find it"):

        class Renamed(Job, kind="t.renamed"):
            order: int = Field(serialization_alias="orderId")


def test_aliases_that_are_read_as_they_are_written_are_fine() -> None:
    class Aliased(Job, kind="t.aliased", validate_by_name=True):
        order: int = Field(alias="orderId")
        buyer: int = Field(validation_alias=AliasChoices("buyerId", "buyer"), serialization_alias="buyerId")
        note: str = Field(default="", exclude=True)

    assert Aliased(order=1, buyer=2).order == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_attemps": 3}, "a RetryPolicy has no 'max_attemps'; did you mean 'max_attempts'?"),
        ({"max_attempts": 0}, "greater than or equal to 1"),
        ({"max_attempts": True}, "valid integer"),
        ({"max_attempts": "3"}, "valid integer"),
        ({"max_attempts": 2**31}, "less than or equal to"),
        ({"first_delay": -1}, "greater than or equal to"),
        ({"first_delay": timedelta.max}, "less than or equal to"),
        ({"max_delay": INFINITY}, "timedelta"),
        ({"max_delay": NAN}, "timedelta"),
        ({"factor": INFINITY}, "finite"),
        ({"factor": 0.5}, "greater than or equal to 1"),
        ({"max_age": 0}, "greater than"),
        ({"give_up_on": ("ValueError",)}, "subclass of BaseException"),
        ({"by_error": {ValueError: 3}}, "RetryPolicy"),
        ({"by_error": {int: RetryPolicy()}}, "subclass of BaseException"),
    ],
)
def test_a_wrong_setting_of_a_retry_policy_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RetryPolicy(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Concurrency(0), "integers from 1"),
        (lambda: Concurrency(True), "integers from 1"),
        (lambda: Concurrency(2**31), "integers from 1"),
        (lambda: Concurrency(1, by=3), "by must be the name of a field, or one of queue, tenant, key"),  # type: ignore[arg-type]
        (lambda: Rate(1, per=0), "per must be more than zero"),
        (lambda: Rate(1, per=NAN), "per must be at most a hundred years, not nan"),
        (lambda: Rate(1, per="1m"), "per must be a timedelta or a number of seconds, not '1m'"),  # type: ignore[arg-type]
        (lambda: Rate(1, per=None), "per must be a timedelta or a number of seconds"),  # type: ignore[arg-type]
        (lambda: Rate(1, per=1, burst=0), "integers from 1"),
    ],
)
def test_a_wrong_limit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(KindError) as caught:
        make()
    assert message in str(caught.value)
