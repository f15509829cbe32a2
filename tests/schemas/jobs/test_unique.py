"""Declarations of unique keys of a kind, and which are refused when the class is made."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from penstock.config.errors import KindError
from penstock.schemas import Job, State
from penstock.schemas.jobs.unique_policy import REPLACEABLE, UNENDED, Unique
from penstock.schemas.wire.codec import HEADER, encode


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, None),
        ({"unique": "reject"}, Unique("reject", UNENDED)),
        (
            {"unique": "existing", "unique_for": 60},
            Unique("existing", UNENDED | {State.SUCCEEDED}, hold=timedelta(minutes=1)),
        ),
        (
            {"unique": "reject", "unique_states": ("dead", "queued")},
            Unique("reject", frozenset({State.DEAD, State.QUEUED})),
        ),
        ({"unique": "replace"}, Unique("replace", REPLACEABLE)),
        ({"unique": "debounce", "debounce": 5}, Unique("debounce", REPLACEABLE, quiet=timedelta(seconds=5))),
    ],
)
def test_a_unique_policy_is_found_with_its_kind(options: dict[str, Any], policy: Unique | None) -> None:
    class Pay(Job, kind="tu.pay", unique_by=("order",), **options):
        order: int

    assert Pay.kind().unique == policy


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"unique": "sometimes"}, "reject, existing, replace, debounce"),
        ({"unique": "reject", "track": False}, r"needs the ledger; remove track=False"),
        ({"unique": "debounce"}, "quiet period"),
        ({"unique": "reject", "debounce": 5}, "debounce goes with"),
        ({"unique": "debounce", "debounce": 0}, "more than zero"),
        ({"unique": "reject", "unique_for": -1}, "more than zero"),
        ({"unique": "reject", "unique_states": ("done",)}, "names done; known are scheduled"),
        ({"unique": "reject", "unique_states": ()}, "at least one"),
        ({"unique": "reject", "unique_states": "queued"}, "sequence"),
        ({"unique": "replace", "unique_for": 5}, "concerns waiting jobs"),
        ({"unique": "debounce", "debounce": 5, "unique_states": ("queued",)}, "concerns waiting jobs"),
        ({"unique_for": 5}, "needs a policy"),
        ({"unique_states": ("queued",)}, "needs a policy"),
        ({"debounce": 5}, "needs a policy"),
    ],
)
def test_contradictory_unique_options_are_refused_when_the_class_is_made(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(KindError, match=expected) as caught:

        class Pay(Job, kind="tu.pay", unique_by=("order",), **options):
            order: int

    assert "Pay" in str(caught.value)


def test_jobs_of_a_unique_kind_without_unique_fields_share_a_key() -> None:
    class Rebuild(Job, kind="tu.rebuild", unique="reject"):
        why: str

    keys = {encode(Rebuild(why=why)).headers[HEADER]["key"] for why in ("a", "b")}
    assert len(keys) == 1
    assert encode(Rebuild(why="c"), key="mine").headers[HEADER]["key"] == "mine"
