"""Values that an old schema accepts and a new one refuses: by example, and against a validator on generated schemas."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter

from penstock.schemas.contracts.compatibility import refusals


class Cat(BaseModel):
    sort: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    sort: Literal["dog"]


class WildDog(BaseModel):
    sort: Literal["dog"]
    pack: str


class Node(BaseModel):
    next: Node | None = None
    value: int


class NarrowNode(BaseModel):
    next: NarrowNode | None = None
    value: Annotated[int, Field(ge=0)]


class Colour(Enum):
    RED, BLUE = "red", "blue"


def between(old: Any, new: Any) -> list[tuple[str, str]]:
    problems = refusals(TypeAdapter(old).json_schema(), TypeAdapter(new).json_schema())
    return [(change.path, change.rule) for change in problems]


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (int, float),
        (int, int | str),
        (int, Any),
        (str, str | None),
        (Literal["a"], Literal["a", "b"]),
        (Literal["a", "b"], str),
        (Colour, str),
        (Literal[3], Annotated[int, Field(ge=1, lt=4)]),
        (Annotated[int, Field(ge=1)], int),
        (Annotated[int, Field(gt=0)], Annotated[int, Field(ge=0)]),
        (Annotated[int, Field(lt=5)], Annotated[int, Field(le=9)]),
        (Annotated[int, Field(multiple_of=6)], Annotated[int, Field(multiple_of=3)]),
        (Annotated[str, Field(min_length=2, max_length=3)], Annotated[str, Field(min_length=1, max_length=9)]),
        (Annotated[str, Field(pattern="^a")], str),
        (datetime, str),
        (str, Decimal),
        (list[int], list[float]),
        (tuple[int, str], list[int | str]),
        (tuple[int, str], tuple[float, str | None]),
        (dict[str, int], dict[str, Any]),
        (dict[Literal["a"], int], dict[str, int]),
        (Dog, Cat | Dog),
        (Annotated[Dog | Cat, Field(discriminator="sort")], Annotated[Cat | Dog, Field(discriminator="sort")] | None),
        (WildDog, Dog),
        (NarrowNode, Node),
    ],
)
def test_widening_is_compatible_and_its_opposite_is_not(narrow: Any, wide: Any) -> None:
    assert between(narrow, wide) == []
    assert between(narrow, narrow) == between(wide, wide) == []
    assert between(wide, narrow) != []


@pytest.mark.parametrize(("left", "right"), [(int, str), (bool, int), (list[int], dict[str, int]), (Cat, Dog)])
def test_types_that_share_nothing_are_refused_both_ways(left: Any, right: Any) -> None:
    assert between(left, right)
    assert between(right, left)


def test_duplicates_for_a_set_are_fine_as_pydantic_takes_them() -> None:
    assert between(list[int], set[int]) == between(set[int], list[int]) == []


def test_refusals_name_their_path() -> None:
    class Old(BaseModel):
        lines: list[dict[str, int]]
        pair: tuple[int, int]
        node: Node

    class New(BaseModel):
        lines: list[dict[str, bool]]
        pair: tuple[int, str]
        node: NarrowNode
        more: str

    assert between(Old, New) == [
        ("lines[]{}", "field-narrowed"),
        ("pair[1]", "field-narrowed"),
        ("node.next.value", "field-narrowed"),
        ("node.value", "field-narrowed"),
        ("more", "field-required"),
    ]


def test_the_best_matching_alternative_of_a_union_is_reported() -> None:
    class Narrow(BaseModel):
        sort: Literal["cat"]
        lives: int = Field(default=9, le=9)

    assert between(Cat | Dog, Narrow | Dog) == [("lives", "field-narrowed")]


def test_an_unsupported_keyword_is_reported() -> None:
    [refusal] = refusals({"type": "string"}, {"type": "string", "if": {"minLength": 3}, "x-note": "mine"})
    assert "'if'" in refusal.reason


SCALARS = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda names, low, span: {"type": names, "minimum": low, "exclusiveMaximum": low + span},
        st.sampled_from(["integer", "number"]),
        st.integers(-2, 2),
        st.integers(1, 3),
    ),
    st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": low + 1}, st.integers(0, 2)),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.sampled_from(["a", "b", 1, None]), min_size=1, unique_by=repr)
    ),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "c"])
    return st.one_of(
        st.builds(lambda schema, two: {"anyOf": [schema, two]}, inner, inner),
        st.builds(lambda schema, most: {"type": "array", "items": schema, "maxItems": most}, inner, st.integers(0, 2)),
        st.builds(lambda schema: {"type": "array", "prefixItems": [schema], "minItems": 1, "maxItems": 1}, inner),
        st.builds(lambda schema: {"type": "object", "additionalProperties": schema}, inner),
        st.builds(
            lambda fields, required: {
                "type": "object",
                "properties": fields,
                "required": sorted(required & fields.keys()),
                "additionalProperties": False,
            },
            st.dictionaries(names, inner, max_size=3),
            st.sets(names),
        ),
    )


SCHEMAS = st.recursive(SCALARS, _containers, max_leaves=6)
VALUES = st.recursive(
    st.sampled_from([None, True, False, "", "a", "b", "abc", -2, -1, 0, 1, 2, 3, 0.5, 1.5]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "c", "z"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(SCHEMAS, SCHEMAS, st.lists(VALUES, min_size=20, max_size=20))
def test_schemas_without_refusals_accept_every_old_value(old: Any, new: Any, values: list[Any]) -> None:
    if not refusals(old, new):
        before, after = Draft202012Validator(old), Draft202012Validator(new)
        assert [value for value in values if before.is_valid(value) and not after.is_valid(value)] == []


@given(SCHEMAS)
def test_a_schema_refuses_nothing_of_itself(schema: Any) -> None:
    # The copy of a union has more alternatives to compare with than the one.
    assert refusals(schema, {"anyOf": [schema, schema]}) == []
