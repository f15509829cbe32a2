"""`Meter`: what a worker measures of its own steps."""

from __future__ import annotations

from penstock.schemas.wire.codec import Message


class Meter:
    """Counts nothing: the meter of a worker whose metrics no one asks for.

    All but `step` is called on the executor's loop, so it must be quick. `step` may be called from any thread.
    """

    def step(self, name: str, seconds: float) -> None:
        """A step for many jobs is done: `fetch` (that brought some), `claim`, `record` or `acknowledge`."""

    def crashed(self, message: Message) -> None:
        """The job was claimed again after a crash of its worker."""
