"""The outbox for messages of adopted frameworks: where `adopt(…, outbox=…)` writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.config.errors import ConfigError
from penstock.config.loaded import loaded
from penstock.producers.enqueue.outbox_rows import BaseOutbox
from penstock.schemas.wire.codec import Envelope

WriteEnvelope = Callable[[Envelope], bool]
"""Writes a message in the caller's transaction; False: there is none, and the message is to be sent at once."""

_TAKES = (
    "outbox= takes a function that returns the Session, AsyncSession or Connection in use, or None; a scoped_session; "
    "or penstock.producers.contrib.django.Outbox()"
)


def writer_to(outbox: Any) -> WriteEnvelope:
    """The way into an outbox.

    Arguments:
        outbox: SQLAlchemy's Session, AsyncSession or Connection, or a function that returns the one in use, such as a
            scoped_session, or None where no transaction is open; or an `Outbox` of Django's.

    Raises:
        ConfigError: it is something else, such as a sessionmaker, whose new sessions no one would commit.
    """
    if isinstance(outbox, BaseOutbox):
        add = getattr(outbox, "add_current", None)
        if add is None:
            raise ConfigError(f"{_TAKES}; not an Outbox of SQLAlchemy's, which does not know the session in use")
        return _always(add)
    try:
        from penstock.producers.outbox import Outbox, is_target
    except ModuleNotFoundError as error:
        raise ConfigError(f"outbox=: {error}; it needs pip install 'penstock[sql]'") from None
    writer = Outbox()
    if is_target(outbox) and not callable(outbox):
        return _always(lambda envelope: writer.add(outbox, envelope))
    if not callable(outbox) or isinstance(outbox, type) or _makes_sessions(outbox):
        raise ConfigError(f"{_TAKES}; not {outbox!r}")

    def write_envelope(envelope: Envelope) -> bool:
        if (target := outbox()) is None:
            return False
        writer.add(target, envelope)
        return True

    return write_envelope


def _always(add: Callable[[Envelope], None]) -> WriteEnvelope:
    def write_envelope(envelope: Envelope) -> bool:
        add(envelope)
        return True

    return write_envelope


def _makes_sessions(outbox: object) -> bool:
    makers = [("sqlalchemy.orm", "sessionmaker"), ("sqlalchemy.ext.asyncio", "async_sessionmaker")]
    modules = [(loaded(module), name) for module, name in makers]
    return any(module is not None and isinstance(outbox, getattr(module, name)) for module, name in modules)
