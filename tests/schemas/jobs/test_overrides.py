"""Options of kinds from `[kinds.NAME]`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from penstock.config.errors import ConfigError
from penstock.config.sections.kinds import KindSettings
from penstock.config.settings import load_settings
from penstock.producers import Producer
from penstock.schemas import Concurrency, Job, Rate, RetryPolicy
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.overrides import override_kinds


class Unreachable(Exception): ...


@pytest.fixture
def note() -> Iterator[type[Job]]:
    class Note(
        Job,
        kind="overrides.note",
        queue="notes",
        timeout=30,
        limits=(Rate(5, per=1), Concurrency(2, by="tenant")),
        retry=RetryPolicy(max_attempts=4, first_delay=2, by_error={Unreachable: RetryPolicy(max_attempts=99)}),
    ):
        text: str = ""

    yield Note
    registry.discard(Note.kind())


def override(name: str = "overrides.note", **values: Any) -> None:
    override_kinds({name: KindSettings.model_validate(values)})


def test_options_of_the_file_take_the_place_of_those_that_the_class_declares(note: type[Job], tmp_path: Path) -> None:
    kind = note.kind()
    file = tmp_path / "penstock.toml"
    file.write_text(
        '[kinds."overrides.note"]\nqueue = "other"\npriority = "low"\ntimeout = "2m"\nsoft_timeout = "90s"\n'
        'expires_in = "1d"\nmax_crashes = 1\nconcurrency = 3\n'
        "retry = { max_attempts = 9, by_error = { Unreachable = { max_age = '3d' } } }\n"
    )
    Producer.from_settings(load_settings(file)).close()
    assert note.kind() is kind is registry["overrides.note"]
    assert (kind.queue, kind.priority, kind.max_crashes) == ("other", "low", 1)
    assert (kind.timeout, kind.soft_timeout) == (timedelta(minutes=2), timedelta(seconds=90))
    assert kind.expires_in == timedelta(days=1)
    assert kind.limits == (Rate(5, per=1), Concurrency(2, by="tenant"), Concurrency(3))
    assert (kind.retry.max_attempts, kind.retry.first_delay) == (9, timedelta(seconds=2))
    outage = kind.retry.for_error(Unreachable)
    assert (outage.max_attempts, outage.max_age, outage.first_delay) == (99, timedelta(days=3), timedelta(seconds=2))


def test_each_set_of_options_begins_with_what_the_class_declares(note: type[Job]) -> None:
    override(queue="other", timeout="1m")
    override(timeout="2m", concurrency=1)
    override(timeout="3m", concurrency=4)
    assert (note.kind().queue, note.kind().timeout) == ("notes", timedelta(minutes=3))
    assert Concurrency(4) in note.kind().limits
    assert Concurrency(1) not in note.kind().limits


def test_options_hold_for_a_class_that_is_defined_later() -> None:
    override("overrides.later", queue="other")

    class Later(Job, kind="overrides.later"): ...

    try:
        assert Later.kind().queue == "other"
    finally:
        registry.discard(Later.kind())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"queue": "dispatcher"}, "queue 'dispatcher' is the dispatcher's own"),
        ({"queue": "a b"}, "queue 'a b' must be letters"),
        ({"soft_timeout": "30s"}, "soft_timeout must be less than timeout"),
        (
            {"retry": {"by_error": {"Unreachabel": {"max_attempts": 1}}}},
            "declares no policy for 'Unreachabel'; did you mean 'Unreachable'?",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name_and_the_kind_stays_as_it_was(
    note: type[Job], values: dict[str, Any], expected: str
) -> None:
    override(priority="low")
    with pytest.raises(ConfigError, match=r'\[kinds\."overrides\.note"\]') as refused:
        override(**values)
    assert expected in str(refused.value)
    assert (note.kind().queue, note.kind().priority) == ("notes", "low")


def test_an_unknown_option_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text('[kinds."overrides.note"]\ntimout = "2m"\n')
    with pytest.raises(ConfigError, match=r"penstock\.toml:2"):
        load_settings(file)
