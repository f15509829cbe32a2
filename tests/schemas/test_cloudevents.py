from __future__ import annotations

import base64
import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.errors import InvalidEvent
from penstock.schemas.events.cloudevents import BATCH, STRUCTURED, Event, parse

MINIMAL = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid"}


def structured(document: Any, content_type: str = STRUCTURED) -> list[Any]:
    return list(parse({"content-type": content_type}, json.dumps(document).encode()))


def binary(body: bytes = b"", **headers: str) -> Event:
    attributes = {f"ce-{name}": value for name, value in MINIMAL.items()}
    [event] = parse(attributes | {name.replace("_", "-"): value for name, value in headers.items()}, body)
    assert isinstance(event, Event)
    return event


def test_a_structured_event_is_read_with_all_its_attributes() -> None:
    more = {"subject": "7", "time": "2026-01-31T12:00:00.5+01:00", "tenant": "acme", "retries": 3, "data": {"id": 7}}
    [event] = structured({**MINIMAL, **more}, STRUCTURED + "; charset=UTF-8")
    assert (event.id, event.source, event.type, event.subject) == ("1", "/shop", "order.paid", "7")
    assert event.time == datetime(2026, 1, 31, 11, 0, 0, 500_000, tzinfo=UTC)
    assert event.extensions == {"tenant": "acme", "retries": 3}
    assert event.document()["data"] == {"id": 7}
    assert event.document()["tenant"] == "acme"


def test_an_attribute_that_is_null_is_not_there() -> None:
    [event] = structured({**MINIMAL, "subject": None, "tenant": None, "data_base64": None})
    assert (event.subject, event.extensions, event.data) == (None, {}, None)


def test_a_binary_event_is_its_headers_and_its_body() -> None:
    event = binary(b'{"id": 7}', content_type="application/json", ce_subject="caf%C3%A9 1", ce_tenant="acme")
    assert (event.subject, event.extensions, event.data) == ("café 1", {"tenant": "acme"}, {"id": 7})
    assert binary(b"hello", content_type="text/plain; charset=utf-8").data == "hello"
    assert binary(b"\xff\x00", content_type="image/png").data == b"\xff\x00"
    assert binary().data is None


def test_a_header_may_be_raw_utf_8_which_servers_read_as_latin_1() -> None:
    received = "café ✓".encode().decode("latin-1")
    event = binary(ce_subject=received, ce_tenant=f"{received} caf%C3%A9")
    assert (event.subject, event.extensions) == ("café ✓", {"tenant": "café ✓ café"})


def test_data_in_base64_is_what_its_content_type_says() -> None:
    encoded = base64.b64encode(b'{"id": 7}').decode()
    [event] = structured({**MINIMAL, "data_base64": encoded, "datacontenttype": "application/vnd.shop+json"})
    assert event.data == {"id": 7}
    [event] = structured({**MINIMAL, "data_base64": encoded, "datacontenttype": "application/octet-stream"})
    assert event.data == b'{"id": 7}'


def test_events_of_a_batch_are_read_one_by_one() -> None:
    good, bad = structured([MINIMAL, {**MINIMAL, "id": ""}], BATCH)
    assert good.id == "1"
    assert isinstance(bad, InvalidEvent)
    assert bad.attribute == "id"
    assert structured([], BATCH) == []


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        *(({name: None}, name) for name in MINIMAL),
        *(({name: 7}, name) for name in MINIMAL),
        ({"specversion": "0.3"}, "specversion"),
        ({"source": "a b"}, "source"),
        ({"type": "a\nb"}, "type"),
        ({"time": "yesterday"}, "time"),
        ({"time": 1_700_000_000}, "time"),
        ({"time": "2026-01-31T12:00:00"}, "time"),
        ({"time": "2026-02-31T12:00:00Z"}, "time"),
        ({"Tenant": "acme"}, "Tenant"),
        ({"tenant": {"name": "acme"}}, "tenant"),
        ({"data_base64": "%"}, "data_base64"),
        ({"data_base64": 7}, "data_base64"),
        ({"data_base64": "eA==", "data": 7}, "data_base64"),
        ({"data_base64": "eA=="}, "data"),
    ],
)
def test_a_wrong_event_is_refused_by_the_name_of_its_attribute(changes: dict[str, Any], attribute: str) -> None:
    with pytest.raises(InvalidEvent) as raised:
        structured({**MINIMAL, **changes})
    assert raised.value.attribute == attribute
    assert attribute in str(raised.value)


@pytest.mark.parametrize(
    ("headers", "body", "attribute"),
    [
        ({}, b"", "content-type"),
        ({"content-type": "application/json"}, b"{}", "content-type"),
        ({"content-type": "application/cloudevents+xml"}, b"<a/>", "content-type"),
        ({"content-type": STRUCTURED + "; charset=latin-1"}, b"{}", "content-type"),
        ({"content-type": STRUCTURED}, b"", "the body"),
        ({"content-type": STRUCTURED}, b"\xff", "the body"),
        ({"content-type": STRUCTURED}, b"[]", "the body"),
        ({"content-type": STRUCTURED}, b'{"data": NaN}', "the body"),
        ({"content-type": STRUCTURED}, b"[" * 100_000, "the body"),
        ({"content-type": BATCH}, b"{}", "the body"),
        ({"content-type": BATCH}, b"[7]", "the body"),
        ({"ce-specversion": "1.0"}, b"", "id"),
        ({"ce-specversion": "1.0", "ce-data": "x"}, b"", "data"),
        ({"ce-specversion": "1.0", "ce-id": "%ff"}, b"", "id"),
        ({"ce-specversion": "1.0", "ce-id": "\xff"}, b"", "id"),
        ({"ce-specversion": "1.0", "content-type": "application/json"}, b"{", "data"),
        ({"ce-specversion": "1.0", "content-type": "text/plain"}, b"\xff", "data"),
    ],
)
def test_a_request_without_a_readable_event_is_refused(headers: dict[str, str], body: bytes, attribute: str) -> None:
    with pytest.raises(InvalidEvent) as raised:
        parse(headers, body)
    assert raised.value.attribute == attribute


TEXTS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["content-type", "ce-specversion", "ce-id", "ce-time", "ce-é"]) | TEXTS, TEXTS),
    st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_random_input_is_an_event_or_an_invalid_event(headers: dict[str, str], body: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        assert all(isinstance(event, Event | InvalidEvent) for event in parse(headers, body))


@given(st.fixed_dictionaries({name: st.just(value) | JSON for name, value in MINIMAL.items()}, optional={"data": JSON}))
def test_attributes_of_an_event_are_kept_as_they_were(document: dict[str, Any]) -> None:
    try:
        [event] = structured(document)
    except InvalidEvent:
        return
    assert {name: event.document()[name] for name in document} == document
