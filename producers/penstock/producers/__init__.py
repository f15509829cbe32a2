"""Sending jobs. Importing this loads no engine, no SQL and no broker's client: those come with the first use."""

from penstock.producers.enqueue.producer import AsyncProducer, Producer
from penstock.producers.handles.handles import AsyncJobHandle, JobHandle

__all__ = ["AsyncJobHandle", "AsyncProducer", "JobHandle", "Producer"]
