"""Generated input that is almost right: random bytes alone are refused at the first look."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

TEXTS = st.text(max_size=40)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, 1e308])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from(["\ud800", "\0", "2026-01-01T00:00:00Z", "x" * 9000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NESTED = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"[1e999]", b"\xff\xfe[]", b"[" * 200 + b"]" * 200])


def document(value: Any) -> bytes:
    return json.dumps(value).encode()


def almost(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which a member is missing, is what it should be, or is anything."""
    return st.fixed_dictionaries({}, optional={name: right | right | JSON for name, right in members.items()})


BODIES = st.binary(max_size=60) | JSON.map(document) | NESTED
EMBEDS = almost(callbacks=st.none(), errbacks=st.none(), chain=st.none(), chord=st.none())
TASKS = st.sampled_from(["fuzz.everything", "fuzz.former", "fuzz.unknown"])
HEADERS = almost(
    task=TASKS,
    id=st.just("an-id"),
    lang=st.just("py"),
    eta=st.just("2026-01-01T00:00:00+00:00"),
    expires=st.just("2026-01-01T00:00:00"),
    retries=st.integers(0, 5),
    penstock=almost(
        version=st.sampled_from([1, 2]), attempt=st.integers(1, 9), key=TEXTS, tenant=TEXTS, fence=st.integers(0, 9)
    ),
)
KWARGS = almost(number=st.integers(), text=TEXTS, day=st.just("2026-01-01"), lines=st.just([{"price": "1.5"}]))
WIRE_BODIES = BODIES | st.tuples(st.just([]) | JSON, KWARGS | JSON, EMBEDS).map(document)

PROTOCOL_1 = almost(
    task=TASKS,
    id=st.just("an-id"),
    args=st.just([]),
    kwargs=KWARGS,
    retries=st.integers(0, 5),
    eta=st.just("2026-01-01T00:00:00"),
)
KOMBU = BODIES | almost(
    body=(WIRE_BODIES | PROTOCOL_1.map(document)).map(lambda body: base64.b64encode(body).decode()),
    headers=HEADERS,
    properties=almost(body_encoding=st.just("base64"), priority=st.integers(0, 9)),
).map(document)

DRAMATIQ = BODIES | almost(
    actor_name=TASKS,
    message_id=st.just("an-id"),
    args=st.just([]),
    kwargs=KWARGS,
    message_timestamp=NUMBERS,
    options=almost(eta=NUMBERS, max_age=NUMBERS, pipe_target=JSON, on_success=JSON),
).map(document)

CLOUDEVENT = almost(
    specversion=st.just("1.0"),
    id=TEXTS,
    source=st.just("/shop"),
    type=st.just("order.paid"),
    time=st.just("2026-01-01T00:00:00Z"),
    subject=TEXTS,
    datacontenttype=st.sampled_from(["application/json", "text/plain; charset=utf-8", "a/b;charset=nonsense"]),
    data=JSON,
    data_base64=st.just("AAAA"),
)
EVENT_HEADERS = st.fixed_dictionaries(
    {
        "content-type": st.sampled_from(
            [
                *("application/cloudevents+json", "application/cloudevents-batch+json", "application/cloudevents+xml"),
                *("application/json", "application/json; charset=nonsense", "text/plain; charset=utf-7", ""),
            ]
        )
        | TEXTS
    },
    optional={
        f"ce-{name}": TEXTS for name in ("specversion", "id", "source", "type", "time", "subject", "traceparent")
    },
)
EVENT_BODIES = BODIES | CLOUDEVENT.map(document) | st.lists(CLOUDEVENT, max_size=3).map(document)

WEBHOOK_BODIES = BODIES | almost(
    id=TEXTS,
    type=TEXTS,
    action=TEXTS,
    Records=st.lists(
        almost(
            eventName=st.just("ObjectCreated:Put"),
            eventTime=st.just("2026-01-01T00:00:00Z"),
            s3=almost(
                bucket=almost(name=st.just("penstock")),
                object=almost(key=TEXTS, size=NUMBERS, eTag=TEXTS, sequencer=TEXTS),
            ),
        ),
        max_size=2,
    ),
).map(document)
WEBHOOK_HEADERS = st.dictionaries(
    st.sampled_from(["x-github-event", "x-github-delivery", "content-type"]), TEXTS, max_size=3
)

PART = st.sampled_from(["*", "0", "5", "59", "23", "31", "12", "L", "LW", "mon", "jan", "5L", "mon#2", "*/7", "22-2"])
FIELD = st.lists(PART | st.text("0123456789*,-/#lw?", max_size=6), min_size=1, max_size=3).map(",".join)
CRON_RULES = st.lists(FIELD, min_size=4, max_size=7).map(" ".join) | st.sampled_from(
    ["@daily", "@reboot", "", "9" * 5000 + " * * * *", "*/" + "9" * 5000 + " * * * *", "0-" + "9" * 5000 + " * * * *"]
)

KEY_PARTS = st.sampled_from(
    ["..", ".", "", "a", "b.txt", "A" * 300, "\0", "\\", "~", "%2e%2e", "é", "\ud800", "con", "."]
)
STORAGE_KEYS = st.lists(KEY_PARTS | TEXTS, min_size=1, max_size=6).map("/".join)

SIZES = st.text("0123456789.KMGTibB ", max_size=12) | st.sampled_from(["9" * 5000, "9" * 400 + "T", "1e9", "-1"]) | JSON
