"""A fault in a workflow is reported when its class is made, and names the step."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any, Literal, TypedDict

import pytest
from pydantic import BaseModel
from support.workflows.jobs import BuildReport, Built, Late, Mail, Nightly, Synced, SyncOrders

from penstock.config.errors import KindError
from penstock.schemas import Job
from penstock.schemas.jobs.kind import registry
from penstock.workers import handles
from penstock.workers.handlers.registry import handlers
from penstock.workers.workflows import Sleep, Wait, Workflow, map_over, step
from penstock.workers.workflows.definition import check_workflows, definitions, graph_hash
from penstock.workers.workflows.type_check import fits


class Untracked(Job, kind="wf.untracked", track=False):
    pass


class Kindless(Job):
    pass


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """The classes of these tests are not for the others."""
    yield
    for kind in [kind for kind in registry if kind.name.startswith("wf.test.")]:
        handlers.discard(kind)
        registry.discard(kind)
        definitions.pop(kind.name, None)


def test_steps_come_after_what_they_need_and_the_last_one_gives_the_result() -> None:
    definition = definitions["wf.nightly"]
    assert {name: step.needs for name, step in definition.steps.items()} == {
        "orders": (),
        "report": ("orders",),
        "tell": ("orders", "report"),
    }
    assert definition.last is not None
    assert definition.last.name == "tell"
    assert [name for name, step in definition.steps.items() if step.fans_out] == ["report"]


def test_a_step_is_an_ordinary_method() -> None:
    assert Nightly(regions=["north"]).orders() == SyncOrders(regions=["north"])


def test_a_graph_has_one_hash_in_whatever_order_it_is_written() -> None:
    assert graph_hash('{"a": {"needs": [], "makes": ["x"]}, "b": {}}') == graph_hash(
        '{"b":{},"a":{"makes":["x"],"needs":[]}}'
    )
    assert graph_hash('{"a": {"makes": ["x"]}}') != graph_hash('{"a": {"makes": ["y"]}}')


def test_a_circle_is_refused_and_shown() -> None:
    with pytest.raises(KindError, match=r"'wf.test.circle': its steps wait for each other: (a → b|b → a)"):

        class Circle(Workflow, kind="wf.test.circle"):
            @step
            def a(self, b: str) -> Mail:
                return Mail()

            @step
            def b(self, a: str) -> Mail:
                return Mail()

    assert registry.find("wf.test.circle") is None


def test_a_parameter_that_is_not_a_step_is_named() -> None:
    with pytest.raises(
        KindError, match=r"step 'tell': 'reprots', which it takes, is not a step; there are report, tell"
    ):

        class Misspelt(Workflow, kind="wf.test.misspelt"):
            @step
            def report(self) -> BuildReport:
                return BuildReport(region="")

            @step
            def tell(self, reprots: Built) -> Mail:
                return Mail()

    with pytest.raises(KindError, match="step 'tell': after='nothing' names no step"):

        class After(Workflow, kind="wf.test.after"):
            @step(after="nothing")
            def tell(self) -> Mail:
                return Mail()


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (Kindless, "it makes Kindless, which has no kind"),
        (Job, "it makes Job, which has no kind"),
        (Untracked, "'wf.untracked' has track=False"),
        (str, "it makes str, which is not a job"),
        (list[str], "it makes str, which is not a job"),
        (None, "it makes nothing"),
        (Mail | Sleep, "it makes Sleep, which is not a job"),
    ],
)
def test_a_step_that_cannot_make_its_annotation_is_refused(annotation: Any, why: str) -> None:
    def method(self: Any) -> Any: ...

    method.__annotations__["return"] = annotation
    with pytest.raises(KindError, match=f"step 'method': {why}"):
        type("Made", (Workflow,), {"method": step(method), "__module__": __name__}, kind="wf.test.made")


def test_a_step_needs_annotations_and_a_name_of_its_own() -> None:
    def method(self: Any): ...  # type: ignore[no-untyped-def]

    with pytest.raises(KindError, match="annotate what it makes"):
        type("Bare", (Workflow,), {"method": step(method)}, kind="wf.test.bare")

    def copy(self: Any) -> Mail: ...

    copy.__annotations__["return"] = Mail
    with pytest.raises(KindError, match="the name is that of a field or of something every job has"):
        type("Copy", (Workflow,), {"copy": step(copy)}, kind="wf.test.copy")


def test_a_result_that_does_not_fit_the_parameter_is_refused() -> None:
    with pytest.raises(
        KindError,
        match=r"step 'tell': parameter 'orders' is Built, which the result of step 'orders', Synced, does not",
    ):

        class Unfit(Workflow, kind="wf.test.unfit"):
            @step
            def orders(self) -> SyncOrders:
                return SyncOrders(regions=[])

            @step
            def tell(self, orders: Built) -> Mail:
                return Mail()

    assert "wf.test.unfit" not in definitions
    with pytest.raises(KindError, match=r"parameter 'report' is .*Built, which the result of step 'report', list"):

        class NotAList(Workflow, kind="wf.test.notalist"):
            @step
            def report(self) -> list[BuildReport]:
                return []

            @step
            def tell(self, report: Built) -> Mail:
                return Mail()


def test_a_handler_that_is_imported_later_is_checked_when_a_worker_boots() -> None:
    class Early(Workflow, kind="wf.test.early"):
        @step
        def late(self) -> Late:
            return Late()

        @step
        def tell(self, late: int) -> Mail:
            return Mail()

    check_workflows()

    @handles(Late)
    def late(job: Late) -> str:
        return ""

    try:
        with pytest.raises(
            KindError, match="parameter 'late' is int, which the result of step 'late', str, does not fit"
        ):
            check_workflows()
    finally:
        handlers.discard(Late.kind())


def test_a_compensation_is_a_method_that_makes_a_job() -> None:
    with pytest.raises(KindError, match="compensation 'undo' is not a method of Missing"):

        class Missing(Workflow, kind="wf.test.missing"):
            @step(compensate="undo")
            def tell(self) -> Mail:
                return Mail()

    with pytest.raises(KindError, match="'undo' is a step itself"):

        class Itself(Workflow, kind="wf.test.itself"):
            @step(compensate="undo")
            def tell(self) -> Mail:
                return Mail()

            @step
            def undo(self) -> Mail:
                return Mail()

    with pytest.raises(KindError, match="takes the result of step 'later', which may not have one by then"):

        class Later(Workflow, kind="wf.test.later"):
            @step(compensate="undo")
            def tell(self) -> Mail:
                return Mail()

            def undo(self, later: str) -> Mail:
                return Mail()

            @step
            def later(self, tell: str) -> Mail:
                return Mail()


def test_keywords_that_are_about_one_job_are_refused() -> None:
    with pytest.raises(KindError, match="timeout= is for jobs"):

        class Timed(Workflow, kind="wf.test.timed", timeout=3):
            @step
            def tell(self) -> Mail:
                return Mail()

    with pytest.raises(KindError, match="has no steps"):

        class Empty(Workflow, kind="wf.test.empty"):
            pass


def test_map_over_goes_with_one_parameter() -> None:
    with pytest.raises(KindError, match="map_over goes with one parameter"):

        class Two(Workflow, kind="wf.test.two"):
            @step
            def orders(self) -> SyncOrders:
                return SyncOrders(regions=[])

            @step
            def report(self, a: str = map_over("orders.regions"), b: str = map_over("orders.regions")) -> BuildReport:
                return BuildReport(region=a + b)


class Row(TypedDict):
    rows: int


class Wide(BaseModel):
    rows: int
    regions: list[str]
    more: str = ""


class Text(BaseModel):
    rows: str


@pytest.mark.parametrize(
    ("result", "target", "fit"),
    [
        (int, int, True),
        (int, float, True),
        (float, int, False),
        (str, int, False),
        (str, date, True),
        (datetime, str, True),
        (Any, int, True),
        (int, Any, True),
        (int | None, int, False),
        (int, int | None, True),
        (int | str, int | str | None, True),
        (list[int], list[float], True),
        (list[str], tuple[int, ...], False),
        (list[int], int, False),
        (dict[str, int], Synced, True),
        (Synced, dict, True),
        (Synced, Wide, True),
        (Wide, Synced, True),
        (Row, Synced, False),
        (Synced, Row, True),
        (Synced, Text, False),
        (Synced, str, False),
        (type(None), str, False),
        (Literal["a"], str, True),
    ],
)
def test_types_are_checked_as_far_as_they_are_known(result: Any, target: Any, fit: bool) -> None:
    assert fits(result, target) is fit


def test_wait_and_sleep_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="give within= too"):
        Wait(int, otherwise=3)
    with pytest.raises(ValueError, match="naive"):
        Sleep(until=datetime(2030, 1, 1))
