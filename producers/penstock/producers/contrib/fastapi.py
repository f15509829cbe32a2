"""FastAPI: as for Starlette, with a dependency for the producer and a router.

penstock = Penstock(secret=…)
app = FastAPI(lifespan=penstock.lifespan)
app.add_middleware(Traces)
app.include_router(penstock.router, prefix="/penstock")

@app.post("/previews")
async def preview(producer: ProducerDep): await producer.enqueue(…)
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import HTTPConnection

from penstock.producers import AsyncProducer
from penstock.producers.contrib import starlette
from penstock.producers.contrib.starlette import State, Traces

__all__ = ["Penstock", "ProducerDep", "State", "Traces"]


class Penstock(starlette.Penstock):
    """See `penstock.producers.contrib.starlette.Penstock`.

    Attributes:
        router: with `/events` and `/ready`; they are not in the OpenAPI document.
    """

    @property
    def router(self) -> APIRouter:
        return APIRouter(routes=list(self.routes))


async def _producer(request: HTTPConnection) -> AsyncProducer:  # a coroutine: a function would take a thread
    return starlette.producer_of(request)


ProducerDep = Annotated[AsyncProducer, Depends(_producer)]
