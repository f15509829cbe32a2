"""`Sensitive` in every place where a type can be, and scrubbing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, NewType, TypeVar

import pytest
from pydantic import AliasChoices, BaseModel, Field, RootModel, ValidationError, field_validator, model_validator
from typing_extensions import TypedDict

from penstock.config.errors import InvalidJob, UndecodableMessage
from penstock.producers.enqueue.envelopes import EnvelopeBuilder
from penstock.schemas import Job, Kind, KindError, Sensitive
from penstock.schemas.jobs.scrubbing import Scrubber
from penstock.schemas.wire.codec import Envelope, decode, encode, explain, unique_key

MARKER = "marker-5e1f"
T = TypeVar("T")
Secret = NewType("Secret", str)


class Card(BaseModel):
    number: Sensitive[str]
    owner: str = "ada"


class Box(BaseModel, Generic[T]):
    item: T


class Tree(BaseModel):
    value: Sensitive[str]
    children: list[Tree] = []


class Codes(RootModel[list[Sensitive[str]]]):
    pass


@dataclass
class Point:
    secret: Sensitive[str]


class Entry(TypedDict):
    secret: Sensitive[str]


class Pair(NamedTuple):
    secret: Sensitive[str]


def declare(annotation: Any, **keywords: Any) -> type[Job]:
    fields = {"__module__": __name__, "__qualname__": "Made", "__annotations__": {"field": annotation, "name": str}}
    job_class: type[Job] = type(Job)("Made", (Job,), fields, kind="t.made", **keywords)  # type: ignore[call-overload]
    return job_class


PLACES: list[tuple[Any, Any, Any]] = [
    (Sensitive[str], MARKER, "***"),
    (Sensitive[str] | None, MARKER, "***"),
    (int | Sensitive[str], MARKER, "***"),
    (list[Sensitive[str]], [MARKER], ["***"]),
    (tuple[Sensitive[str], ...], [MARKER], ["***"]),
    (dict[str, Sensitive[str]], {"a": MARKER}, {"a": "***"}),
    (dict[str, list[Sensitive[str]] | None], {"a": [MARKER], "b": None}, {"a": ["***"], "b": None}),
    (Sensitive[dict[str, int]], {MARKER: 1}, "***"),
    (Annotated[Sensitive[str], Field(min_length=2)], MARKER, "***"),
    (Sensitive[Secret], MARKER, "***"),
    (Card, {"number": MARKER}, {"number": "***", "owner": "ada"}),
    (list[Card] | None, [{"number": MARKER}], [{"number": "***", "owner": "ada"}]),
    (Card | str, {"number": MARKER}, {"number": "***", "owner": "ada"}),
    (Card | str, MARKER, "***"),
    (Box[Sensitive[str]], {"item": MARKER}, {"item": "***"}),
    (Box[Card], {"item": {"number": MARKER}}, {"item": {"number": "***", "owner": "ada"}}),
    (
        Tree,
        {"value": MARKER, "children": [{"value": MARKER}]},
        {"value": "***", "children": [{"value": "***", "children": []}]},
    ),
    (Codes, [MARKER], ["***"]),
    (Point, {"secret": MARKER}, {"secret": "***"}),
    (Entry, {"secret": MARKER}, {"secret": "***"}),
    (Pair, [MARKER], ["***"]),
]


@pytest.mark.parametrize(("annotation", "value", "redacted"), PLACES, ids=lambda value: str(value)[:40])
def test_it_works_wherever_a_type_can_be(annotation: Any, value: Any, redacted: Any) -> None:
    job = declare(annotation).model_validate_json(json.dumps({"field": value, "name": "plain"}))
    kind = job.kind()
    assert job.redacted() == {"field": redacted, "name": "plain"}
    assert MARKER not in repr(job)
    assert "plain" in repr(job)
    assert kind.sensitive == {"field"}
    scrub = kind.scrubber(job.model_dump(mode="json"))
    assert scrub is not None
    assert scrub(f"no {MARKER} of plain") == "no *** of plain"
    assert decode(encode(job)).job == job


@pytest.mark.parametrize(
    ("annotation", "advice"),
    [
        (dict[Sensitive[str], int], "keys of a mapping"),
        (Callable[[Sensitive[str]], int], r"Sensitive\[…\] around the whole annotation"),
        (type[Sensitive[str]], r"Sensitive\[…\] around the whole annotation"),
    ],
)
def test_where_it_would_do_nothing_it_is_refused_with_what_to_write(annotation: Any, advice: str) -> None:
    with pytest.raises(KindError, match=advice):
        declare(annotation)


def test_values_are_hidden_under_each_name_that_a_field_has_on_the_wire() -> None:
    class Pay(Job, kind="t.pay"):
        iban: Sensitive[str] = Field(
            validation_alias=AliasChoices("account", "konto"), serialization_alias="account", default=""
        )
        note: str = ""

    redact = Pay.kind().redact
    for name in ("iban", "account", "konto"):
        assert redact({name: MARKER, "note": "x"}) == {name: "***", "note": "x"}
    assert redact({"former": MARKER}) == {"former": "***"}, "a field that it does not know may have been sensitive"


def test_a_kind_without_sensitive_fields_pays_and_hides_nothing() -> None:
    kind = declare(int).kind()
    assert (kind.shapes, kind.sensitive, kind.scrubber({"field": 1234})) == ([], frozenset(), None)
    assert kind.redact({"unknown": "seen"}) == {"unknown": "seen"}
    with pytest.raises(ValidationError, match="input_value='seen'"):
        kind.job(field="seen", name="")


def test_errors_of_pydantic_do_not_repeat_the_input() -> None:
    job = declare(Sensitive[int])
    with pytest.raises(ValidationError) as caught:
        job(field=MARKER, name="")
    assert MARKER not in str(caught.value)
    assert "input_value" not in str(caught.value)


class Pay(Job, kind="sensitive.pay"):
    iban: Sensitive[str]
    amount: int = 0
    extras: Sensitive[dict[str, int]] = Field(default_factory=dict)

    @field_validator("iban")
    @classmethod
    def _check(cls, value: str) -> str:
        if value.startswith("bad"):
            raise ValueError(f"{value} is not an IBAN")
        if value.startswith("worse"):
            raise LookupError(f"no bank has {value}")
        return value

    @model_validator(mode="after")
    def _check_both(self) -> Pay:
        if self.amount < 0:
            raise ValueError(f"cannot pay {self.amount} from {self.iban}")
        return self


WRONG = [
    {"iban": f"bad {MARKER}"},
    {"iban": f"worse {MARKER}"},
    {"iban": MARKER, "amount": -1},
    {"iban": MARKER, "amount": MARKER},
    {"amount": MARKER},
    {"iban": {"inner": MARKER}},
    {"iban": "x", "ibna": MARKER},
    {"iban": "x", "extras": {MARKER: "no"}},
]


@pytest.mark.parametrize("payload", WRONG, ids=json.dumps)
def test_a_message_that_cannot_be_read_is_described_without_its_values(payload: dict[str, Any]) -> None:
    body = json.dumps([[], payload, None]).encode()
    with pytest.raises(UndecodableMessage) as caught:
        decode(Envelope("q", "normal", {"task": "sensitive.pay", "id": "1"}, body))
    error: BaseException | None = caught.value
    assert MARKER not in str(error)
    assert MARKER not in json.dumps(caught.value.detail)
    assert error is not None
    assert error.__cause__ is None


@pytest.mark.parametrize("payload", [case for case in WRONG if "worse" not in str(case)], ids=json.dumps)
def test_a_payload_that_does_not_fit_is_explained_without_its_values(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Pay.model_validate_json(json.dumps(payload))
    assert MARKER not in explain(caught.value, kind=Pay.kind())


def test_a_field_that_is_wrong_is_still_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Pay.model_validate_json('{"iban": "x", "amount": "many", "extras": {"one": "x"}}')
    reason = explain(caught.value, kind=Pay.kind())
    assert reason.startswith("amount: Input should be a valid integer")
    assert "; extras: Input should be a valid integer" in reason


def test_a_job_that_no_worker_could_read_is_refused_without_its_values() -> None:
    with pytest.raises(InvalidJob) as caught:
        EnvelopeBuilder().build(Pay.model_construct(iban=f"bad {MARKER}", amount=1), {})
    assert MARKER not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_of_a_sensitive_field_is_a_hash() -> None:
    class Reset(Job, kind="t.reset", unique_by=("user", "token")):
        user: str
        token: Sensitive[str] | None = None

    first, second = Reset(user="ada", token=MARKER), Reset(user="ada", token="other")
    key = unique_key(first)
    assert key.startswith("t.reset:sha256=")
    assert MARKER not in key
    assert key == unique_key(Reset(user="ada", token=MARKER)) != unique_key(second)


def test_values_are_found_quoted_escaped_and_line_by_line() -> None:
    scrub = Scrubber(['say "hällo"\nto us', 12345, "abc"])
    for text in (
        'say "hällo"\nto us',
        repr('say "hällo"\nto us'),
        json.dumps('say "hällo"\nto us'),
        '  | say "hällo"\n  | to us',
        "say+%22h%C3%A4llo%22",
    ):
        assert "llo" not in scrub(text)
    assert scrub("card 12345, abc") == "card ***, abc", "what is shorter than 4 characters is not looked for"


def test_a_value_that_pydantic_has_cut_is_left_out() -> None:
    long = f"{MARKER}-{'x' * 100}-{MARKER}"

    class Other(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Other(number=long)  # type: ignore[arg-type]
    assert MARKER in str(caught.value)
    assert MARKER not in Scrubber([long])(str(caught.value))


def test_scrubbing_is_bounded() -> None:
    scrub = Scrubber(str(number) for number in range(10_000, 20_000))
    assert scrub("anything") == "***", "too many values to look for"
    text = Scrubber(["x" * 1000])("x" * 3_000_000)
    assert "x" not in text
    assert len(text) < 1_000_000


def test_an_unresolved_name_is_read_when_it_is_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    class Late(Job, kind="t.late"):
        inner: Inner | None = None  # type: ignore[name-defined]

    class Inner(BaseModel):
        secret: Sensitive[str]

    Late.model_rebuild(_types_namespace={"Inner": Inner})
    kind: Kind = Late.kind()
    assert kind.redact({"inner": {"secret": MARKER}}) == {"inner": {"secret": "***"}}


def test_a_sensitive_field_is_not_searchable_also_where_its_name_is_resolved_late() -> None:
    with pytest.raises(KindError, match="search names card, which is Sensitive"):

        class Known(Job, kind="t.searched", search=("card",)):
            card: Sensitive[str]

    class Late(Job, kind="t.searched_late", search=("inner", "order")):
        inner: Hidden | None = None  # type: ignore[name-defined]
        order: int = 0

    class Hidden(BaseModel):
        secret: Sensitive[str]

    Late.model_rebuild(_types_namespace={"Hidden": Hidden})
    kind: Kind = Late.kind()
    assert kind.searchable({"inner": {"secret": MARKER}, "order": 7}) == {"order": 7}
