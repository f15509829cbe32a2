"""Two states of a kind, the older one exported: what breaks, what needs care, and what does not matter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import BaseModel, Field, PlainValidator

from penstock.config.errors import ConfigError
from penstock.schemas import Job, Sensitive, registry, upcasts
from penstock.schemas.contracts.asyncapi import document
from penstock.schemas.contracts.catalog import markdown, page
from penstock.schemas.contracts.export import Change, compare, export, read_export

DATA = Path(__file__).parent.parent / "support" / "data"
Class = type[Job]


def exported(*declare: Callable[[], Class]) -> dict[str, Any]:
    """The export of these declarations, written and read; the kinds are forgotten again."""
    kinds = [make().kind() for make in declare]
    text = json.dumps(export(kinds))
    for kind in kinds:
        registry.discard(kind)
    return read_export(text, "here")


def changes(old: Callable[[], Class], *new: Callable[[], Class], **options: Any) -> list[Change]:
    return compare(exported(old), exported(*new), **options)


def rules(changes: list[Change]) -> set[tuple[str, str, str | None]]:
    return {(change.severity, change.rule, change.field) for change in changes}


def pay(**declared: Any) -> Callable[[], Class]:
    """Declares the kind `t.pay` with fields of these names and types; class keywords in `options`."""

    def declare() -> Class:
        options = {"kind": "t.pay", "queue": "money", **declared.get("options", {})}
        fields = declared.get("fields", {"order": int, "to": str})
        values = declared.get("values", {})
        job = type(Job)("Pay", (Job,), {"__module__": __name__, "__annotations__": fields, **values}, **options)
        for version in declared.get("upcasters", ()):
            upcasts(job, from_version=version)(lambda payload: payload)
        return job

    return declare


def test_the_same_kind_has_not_changed() -> None:
    assert changes(pay(), pay()) == []


def test_options_outside_the_contract_may_change() -> None:
    assert changes(pay(), pay(options={"timeout": 30, "priority": "high", "max_crashes": 5})) == []


def test_a_removed_field_breaks_what_has_it() -> None:
    differences = changes(pay(), pay(fields={"order": int}))
    assert ("breaking", "field-removed", "to") in rules(differences)
    assert "upcaster from version 1" in differences[0].message


def test_a_narrower_type_breaks_and_a_wider_one_needs_workers_first() -> None:
    wide = pay(fields={"order": int, "to": str | None})
    assert rules(changes(wide, pay())) == {("breaking", "field-narrowed", "to")}
    assert rules(changes(pay(), wide)) == {("warning", "workers-first", None)}


def test_a_new_field_breaks_only_without_a_default() -> None:
    more = {"order": int, "to": str, "note": str}
    assert ("breaking", "field-required", "note") in rules(changes(pay(), pay(fields=more)))
    differences = changes(pay(), pay(fields=more, values={"note": ""}))
    assert rules(differences) == {("warning", "workers-first", None)}
    assert "note" in differences[0].message


def test_an_upcaster_makes_a_breaking_change_one_of_version() -> None:
    later = {"options": {"version": 2}, "fields": {"order": int, "to": str, "note": str}}
    assert ("breaking", "upcaster-missing", None) in rules(changes(pay(), pay(**later)))
    assert rules(changes(pay(), pay(**later, upcasters=[1]))) == {
        ("warning", "stock-clients", None),
        ("warning", "workers-first", None),
    }


def test_versions_need_an_upcaster_for_every_step_between_them() -> None:
    differences = changes(pay(), pay(options={"version": 4}, upcasters=[1, 3]))
    [missing] = [change for change in differences if change.severity == "breaking"]
    assert "from version 2" in missing.message


def test_a_lowered_version_breaks_and_a_lost_upcaster_is_reported() -> None:
    second = pay(options={"version": 2}, upcasters=[1])
    assert ("breaking", "version-lowered", None) in rules(changes(second, pay()))
    assert rules(changes(second, pay(options={"version": 2}))) == {("warning", "upcaster-removed", None)}


def test_a_rename_needs_an_alias() -> None:
    differences = changes(pay(), pay(options={"kind": "t.charge"}))
    assert rules(differences) == {("breaking", "kind-removed", None)}
    assert "renamed to 't.charge', give that aliases=('t.pay',)" in differences[0].message
    renamed = pay(options={"kind": "t.charge", "aliases": ("t.pay",)})
    assert changes(pay(), renamed) == []
    assert rules(changes(renamed, pay(options={"kind": "t.charge"}))) == {("breaking", "alias-removed", None)}
    narrower = pay(options={"kind": "t.charge", "aliases": ("t.pay",)}, fields={"order": int, "to": int})
    assert ("breaking", "field-narrowed", "to") in rules(changes(pay(), narrower))


def test_a_kind_that_is_gone_breaks_unless_that_is_meant() -> None:
    assert rules(changes(pay())) == {("breaking", "kind-removed", None)}
    assert rules(changes(pay(), accepted=["t.pay"])) == {("warning", "kind-removed", None)}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"queue": "slow"}, "queue-changed"),
        ({"delivery": "once"}, "delivery-changed"),
        ({"unique_by": ("order",)}, "unique-by-changed"),
        ({"unique": "reject"}, "unique-changed"),
    ],
)
def test_a_change_that_needs_care_is_a_warning(options: dict[str, Any], rule: str) -> None:
    assert rules(changes(pay(), pay(options=options))) == {("warning", rule, None)}


def test_the_order_of_fields_matters_to_stock_clients() -> None:
    swapped = pay(fields={"to": str, "order": int})
    assert rules(changes(pay(), swapped)) == {("warning", "fields-reordered", None)}


def test_a_field_that_is_no_longer_sensitive_is_reported() -> None:
    hidden = pay(fields={"order": int, "to": Sensitive[str]})
    assert rules(changes(hidden, pay())) == {("warning", "sensitive-removed", "to")}
    assert changes(pay(), hidden) == []


def test_a_removed_field_is_a_warning_where_unknown_fields_are_ignored() -> None:
    def loose(*names: str) -> Callable[[], Class]:
        return pay(fields=dict.fromkeys(names, str), options={"extra": "ignore"})

    assert ("warning", "field-ignored", "b") in rules(changes(loose("a", "b"), loose("a")))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kinds": []}', '{"kinds": {"a": {}}}', '{"kinds": {"a": 1}}'])
def test_a_file_that_is_not_an_export_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"old\.json: not an export"):
        read_export(text, "old.json")


class Odd:
    def __init__(self, value: object) -> None: ...


class Line(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]+\|\d+$", description="As <printed> on the label.")
    count: int = Field(ge=1)


def order() -> Class:
    class Order(Job, kind="t:order", queue="orders", aliases=("t.order",), unique="reject", unique_by=("number",)):
        """Take an order.

        Ends with <script>alert(1)</script> | and a bar."""

        number: int
        lines: tuple[Line, ...] = ()
        address: tuple[str, int]
        token: Sensitive[str] = ""

    return Order


def test_a_type_without_a_json_schema_may_be_anything() -> None:
    odd = pay(fields={"order": int, "odd": Annotated[Odd, PlainValidator(Odd)]})
    assert exported(odd)["t.pay"]["schema"]["properties"]["odd"].keys() <= {"title"}
    spec = document([odd().kind()], title="Shop", version="2", broker_url="amqp://host", prefix="p")
    assert "order" in json.dumps(spec["components"]["schemas"])


def test_the_catalog_shows_every_kind_with_its_fields() -> None:
    text = markdown(exported(order, pay()))
    assert "| `t:order` | 1 | `orders` | Take an order. |" in text
    assert "unique (reject) by `number`; formerly `t.order`." in text
    assert "| `lines` | array of `Line` | `[]` |  |" in text
    assert r"| `sku` | string, matching `^[A-Z]+\\|\d+$` | required | As &lt;printed&gt; on the label. |" in text
    assert '| `token` | string | `""` | Sensitive. |' in text


def test_the_catalog_as_html_holds_no_tags_of_others() -> None:
    html = page(exported(order))
    assert "<table>" in html
    assert "<code>t:order</code>" in html
    assert "<script>" not in html


@pytest.mark.parametrize(
    "url", ["redis://:secret@host:6379/0", "amqps://guest:secret@a.example//", "unix:///run/redis"]
)
def test_the_asyncapi_document_is_what_its_own_schema_asks_for(url: str) -> None:
    class Twin(Job, kind="t.twin", queue="a:b"):
        line: Line

    spec = document([order().kind(), Twin.kind()], title="Shop", version="2", broker_url=url, prefix="p")
    schema = json.loads((DATA / "asyncapi-3.0.0.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(spec)] == []
    assert not validator.is_valid({**spec, "channels": {"x": {"adress": "x"}}})
    assert "secret" not in json.dumps(spec)
    assert set(spec["channels"]) == {"orders", "a-b"}


def test_a_message_on_the_wire_is_what_the_asyncapi_document_says() -> None:
    from penstock.schemas.wire.codec import encode

    job = order()(number=1, address=("Main Street", 7), lines=(Line(sku="A|1", count=1),))
    spec = document([job.kind()], title="Shop", version="2", broker_url="amqp://host", prefix="p")
    message = spec["components"]["messages"]["t-order"]
    envelope = encode(job, tenant="acme")
    for schema, value in ((message["payload"], json.loads(envelope.body)), (message["headers"], envelope.headers)):
        validator = jsonschema.Draft7Validator({**schema, "components": spec["components"]})
        assert [error.message for error in validator.iter_errors(value)] == []
    wrong = json.loads(envelope.body)
    wrong[1]["address"] = ["Main Street", "seven"]
    assert not jsonschema.Draft7Validator({**message["payload"], "components": spec["components"]}).is_valid(wrong)


def test_references_in_the_asyncapi_document_resolve() -> None:
    spec = document([order().kind()], title="Shop", version="2", broker_url="amqp://host", prefix="p")

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    targets = set(references(spec))
    assert "#/components/schemas/Line" in targets
    for reference in targets:
        place = spec
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]
