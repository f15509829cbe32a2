"""Numbers that a thread reads in the background, so that a scrape reads memory alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.config.errors import PenstockError
from penstock.config.supervision import Outage, start_thread

log = logging.getLogger("penstock.metrics")

EVERY_SECONDS = 5.0
REST = 20.0
"""A reading that takes long is rare: the pause after it is at least this many times as long, up to a minute."""
LONGEST_REST_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 15.0
"""Longest pause after a reading that failed."""

Sample = tuple[str, tuple[str, ...], float]
"""Name of a gauge, the values of its labels, and its value."""


@dataclass(slots=True)
class _Reading:
    """A reader and what it has returned last.

    Attributes:
        samples: None while it fails.
        read_at: when it last succeeded, or was started.
        due_at: when it is next called.
    """

    name: str
    read: Callable[[], Iterable[Sample]]
    read_at: float
    samples: Sequence[Sample] | None = None
    due_at: float = 0.0
    outage: Outage = field(default_factory=Outage)
    is_failing: bool = False


class Readings(Collector):
    """Gauges of several readers, each called every few seconds in one thread; a slow one is called less often.

    Gauges of a reader that fails are left out until it succeeds again. Each outage is logged once.

    Arguments:
        name: of the thread.
        gauges: name of each gauge → its help text and the names of its labels.
        readers: what is read → a function that reads it, which may block and raise PenstockError.
        age: name and help text of a gauge for the age of the oldest reading, in seconds.
    """

    def __init__(
        self,
        name: str,
        gauges: Mapping[str, tuple[str, tuple[str, ...]]],
        readers: Mapping[str, Callable[[], Iterable[Sample]]],
        *,
        age: tuple[str, str] | None = None,
        every_seconds: float | None = None,
    ) -> None:
        self._name, self._gauges, self._age = name, gauges, age
        self._every_seconds = EVERY_SECONDS if every_seconds is None else every_seconds
        now = time.monotonic()
        self._readings = [_Reading(what, read, now) for what, read in readers.items()]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = start_thread(self._name, self._run, self._stopping, vital=False)

    def close(self, seconds: float = 5.0) -> None:
        """End the thread; wait this long for a reading that is under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def disconnect(self) -> None:  # some have nothing of their own
        """Close what only the readers use; called in their thread when it ends."""

    def describe(self) -> Iterable[Metric]:
        """Nothing: the gauges differ from time to time."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The last readings. Touches neither broker nor database."""
        families = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in self._gauges.items()}
        for reading in self._readings:
            for name, labels, value in reading.samples or ():
                families[name].add_metric(labels, value)
        yield from (family for family in families.values() if family.samples)
        if self._age is not None:
            name, text = self._age
            oldest = min(reading.read_at for reading in self._readings)
            yield GaugeMetricFamily(name, text, value=time.monotonic() - oldest)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for reading in self._readings:
                if not self._stopping.is_set() and time.monotonic() >= reading.due_at:
                    self._refresh(reading)
            due_at = min(reading.due_at for reading in self._readings)
            self._stopping.wait(max(due_at - time.monotonic(), 0.05))
        self.disconnect()

    def _refresh(self, reading: _Reading) -> None:
        began = time.monotonic()
        try:
            samples = list(reading.read())
        except Exception as error:
            reading.samples = None
            took = time.monotonic() - began
            reading.due_at = time.monotonic() + max(self._every_seconds, min(2 * took, LONGEST_RETRY_SECONDS))
            reading.is_failing = True
            if reading.outage.is_new(error):
                trace = None if isinstance(error, PenstockError) else error
                log.warning("metrics of %s are left out: %s", reading.name, error, exc_info=trace)
            return
        now = time.monotonic()
        reading.samples, reading.read_at = samples, now
        reading.due_at = now + max(self._every_seconds, min(REST * (now - began), LONGEST_REST_SECONDS))
        if reading.is_failing:
            reading.is_failing = False
            reading.outage.end()
            log.warning("metrics of %s are read again", reading.name)
