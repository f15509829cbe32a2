"""Sending jobs. Importing this loads no engine, no SQL and no broker's client: those come with the first use."""

from penstock.producers.handles import AsyncJobHandle, JobHandle
from penstock.producers.producer import AsyncProducer, Producer

__all__ = ["AsyncJobHandle", "AsyncProducer", "JobHandle", "Producer"]
