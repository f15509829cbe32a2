"""The program of a child of the pool: it is warmed up once, and calls a handler after the other."""

from __future__ import annotations

import gc
import logging

from penstock.workers.executor.attempt.child.calls import HandlerCalls
from penstock.workers.executor.attempt.child.logs import send_records
from penstock.workers.executor.attempt.child.pipe import ChildEnd, Message

log = logging.getLogger("penstock.executor")


def serve(pipe: ChildEnd, request: Message) -> None:
    """Load the handlers and open their resources, answer that this is done, and then answer each request for a job.
    Returns when the worker sends no more."""
    send_records(pipe, request["levels"])
    calls = HandlerCalls(pipe, request, lasting=True)
    try:
        _warm_up(calls, request)
        pipe.answer({"value": None, "outgoing": []})
        while job := pipe.receive():
            pipe.answer(calls.answer(job))
    finally:
        calls.close()


def _warm_up(calls: HandlerCalls, request: Message) -> None:
    """Do what every job would need. What fails is logged, and each job tries it again, and fails itself."""
    try:
        calls.load()
    except Exception:
        log.exception("a process of the pool cannot load its handlers")
        return
    for kind in request["kinds"]:
        try:
            calls.open_resources(kind)
        except Exception:
            log.exception("a process of the pool cannot open what the handler of %s asks for", kind)
    gc.collect()
    gc.freeze()  # what was loaded stays, and need not be looked at again
