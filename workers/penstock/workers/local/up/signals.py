"""Signals that ask to stop: the first one stops in order, a second Ctrl-C stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping(threading.Event):
    """Set by the first Ctrl-C, SIGTERM or SIGHUP; `hurry` returns whether there was a second Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        self._interrupts = 0

    def hurry(self) -> bool:
        return self._interrupts > 1

    def pause(self, seconds: float) -> None:
        """Sleep; raises KeyboardInterrupt as soon as it is set."""
        self.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raises KeyboardInterrupt if it is set."""
        if self.is_set():
            raise KeyboardInterrupt

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Only Ctrl-C counts twice: a terminal that closes sends SIGHUP after it, and service managers repeat SIGTERM.
        self._interrupts += number == signal.SIGINT
        self.set()


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[Stopping]:
    """Turn the signals into an event while the block runs. To be called in the main thread."""
    stopping = Stopping()
    before = {number: signal.signal(number, stopping.on_signal) for number in SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
