"""Sending jobs. Importing this loads no engine, no SQL and no broker's client: those come with the first use.

Every error that a producer, a handle or an outbox raises can be imported from here. `PenstockError` is their root.
"""

from penstock.config.errors import (
    BrokerUnavailable,
    ConfigError,
    DuplicateJob,
    InvalidJob,
    InvalidKey,
    InvalidResult,
    InvalidState,
    InvalidToken,
    JobFailed,
    JobNotFound,
    KindError,
    LedgerUnavailable,
    NotTracked,
    ObjectNotFound,
    PayloadTooLarge,
    PenstockError,
    QueueFull,
    StorageError,
    UnknownQueue,
    WaitTimeout,
    WatchClosed,
)
from penstock.producers.enqueue.async_producer import AsyncProducer
from penstock.producers.enqueue.producer import Producer
from penstock.producers.handles.handles import AsyncJobHandle, JobHandle

__all__ = [
    "AsyncJobHandle",
    "AsyncProducer",
    "BrokerUnavailable",
    "ConfigError",
    "DuplicateJob",
    "InvalidJob",
    "InvalidKey",
    "InvalidResult",
    "InvalidState",
    "InvalidToken",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "KindError",
    "LedgerUnavailable",
    "NotTracked",
    "ObjectNotFound",
    "PayloadTooLarge",
    "PenstockError",
    "Producer",
    "QueueFull",
    "StorageError",
    "UnknownQueue",
    "WaitTimeout",
    "WatchClosed",
]
