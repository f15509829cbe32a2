"""The messages of a wait in vain name the thing waited for and the last value seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.polling import retry, until, until_async


class Queue:
    def __init__(self, *sizes: int) -> None:
        self.sizes = list(sizes)

    def size(self) -> int:
        """Number of jobs."""
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]


def message(condition: Callable[[], Any], what: str = "", **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        until(condition, what, 0.05, **options)
    return str(caught.value)


def test_until_returns_the_first_true_value() -> None:
    queue = Queue(0, 0, 3)
    assert until(queue.size) == 3
    assert asyncio.run(until_async(Queue(0, 2).size)) == 2


def test_a_timeout_shows_the_condition_and_both_sides_of_its_comparison() -> None:
    queue, expected = Queue(3), 5
    assert message(lambda: queue.size() == expected) == (
        "not within 0.05 s: queue.size() == expected\n  last value: False\n  queue.size() = 3\n  expected = 5"
    )


def test_a_timeout_leaves_constants_out_and_shows_the_name_of_the_thing() -> None:
    queue = Queue(3)
    assert message(lambda: not (queue.size() == 3 and queue), "an empty queue") == (
        "not within 0.05 s: an empty queue (not (queue.size() == 3 and queue))\n"
        f"  last value: False\n  queue.size() = 3\n  queue = {queue!r}"
    )


def test_a_timeout_shows_each_item_of_all_and_any() -> None:
    queues = [Queue(0), Queue(7)]
    assert "[queue.size() for queue in queues] = [0, 7]" in message(lambda: all(queue.size() for queue in queues))


def test_a_timeout_shows_defaults_of_the_lambda_and_errors_of_its_parts() -> None:
    queue = Queue(0)
    text = message(lambda items=(): queue.size() and items[0] > 1)
    assert "  last value: 0\n  queue.size() = 0\n  items[0] = IndexError" in text


def test_a_timeout_shows_the_name_and_the_docstring_of_a_function() -> None:
    assert message(Queue(0).size) == "not within 0.05 s: Queue.size(): Number of jobs.\n  last value: 0"

    def has_ended() -> bool:
        return False

    assert message(has_ended) == "not within 0.05 s: has_ended()\n  last value: False"


def test_one_of_two_lambdas_in_a_line_is_shown() -> None:
    queue = Queue(0)
    first, second = (lambda: queue.size()), (lambda: queue.size() * 2)
    assert "not within 0.05 s: queue.size()\n" in message(first)
    assert "not within 0.05 s: queue.size() * 2\n" in message(second)


def test_a_failed_assertion_is_tried_again_and_the_last_one_is_shown() -> None:
    queue = Queue(1, 2, 9)

    def is_empty() -> bool:
        size = queue.size()
        assert size == 0, f"{size} jobs are left"
        return True

    with pytest.raises(AssertionError, match="it last failed with: 9 jobs are left") as caught:
        until(is_empty, seconds=0.5)
    assert queue.sizes == [9]
    assert isinstance(caught.value.__cause__, AssertionError)


def test_another_error_ends_the_wait_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 / 0)


def test_a_reason_to_give_up_ends_the_wait_at_once_and_is_shown() -> None:
    with pytest.raises(AssertionError, match=r"the server \(False\) will not come about: exit code 3"):
        until(lambda: False, "the server", unless=lambda: "exit code 3")


def test_an_async_wait_shows_the_same() -> None:
    queue = Queue(3)
    with pytest.raises(AssertionError, match=r"an empty queue \(queue.size\(\) == 0\)\n.*\n  queue.size\(\) = 3"):
        asyncio.run(until_async(lambda: queue.size() == 0, "an empty queue", 0.05))


def test_a_call_is_retried_after_these_errors_only() -> None:
    queue = Queue(0, 0, 3)
    assert retry(lambda: 6 // queue.size(), ZeroDivisionError) == 2
    with pytest.raises(KeyError):
        retry(lambda: {}["missing"], ZeroDivisionError)
    with pytest.raises(AssertionError, match=r"6 // queue.size\(\) // 0 will not come about: closed"):
        retry(lambda: 6 // queue.size() // 0, ZeroDivisionError, unless=lambda: "closed")
