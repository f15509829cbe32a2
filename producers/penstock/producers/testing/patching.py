"""Puts a test's sender and ledger in the place of every producer's, those made before included.

A data descriptor on the class goes before what an instance holds under the same name. So nothing changes in any
instance, and outside of tests nothing is paid for this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from penstock.producers.enqueue.producer import AsyncProducer, Producer
from penstock.producers.senders.memory import MemoryBroker


class _InPlaceOf:
    """Answers for an attribute of every instance.

    Arguments:
        stand_in: from the instance's own value to what is seen in its place.
    """

    def __init__(self, name: str, stand_in: Callable[[Any], Any]) -> None:
        self._name, self._stand_in = name, stand_in

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        held = vars(instance)
        # The inline engine's producer has a broker in memory already. One without a sender is just being made.
        if "_sender" not in held or isinstance(held["_sender"], MemoryBroker):
            return held[self._name]
        return self._stand_in(held[self._name])

    def __set__(self, instance: object, value: Any) -> None:
        vars(instance)[self._name] = value


@contextmanager
def in_place_of(producer: type[Producer | AsyncProducer], stand_ins: dict[str, Callable[[Any], Any]]) -> Iterator[None]:
    """While the block runs, let all instances of a class show these in place of their own. Blocks may be nested."""
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.callback(_restore, producer, name, vars(producer).get(name))
            setattr(producer, name, _InPlaceOf(name, stand_in))
        yield


def _restore(producer: type, name: str, before: Any) -> None:
    if before is None:
        delattr(producer, name)
    else:
        setattr(producer, name, before)
