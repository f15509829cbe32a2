"""The jobs of a rolling deploy: with DEPLOY=new in the environment this module is the newer code."""

from __future__ import annotations

import os

from penstock.schemas import Job, upcasts
from penstock.workers import handles

NEW = os.environ.get("DEPLOY") == "new"

if NEW:

    class Mail(Job, kind="deploy.mail", queue="deploys", version=2):
        to: list[str]

    @upcasts(Mail, from_version=1)
    def list_of_one(payload: dict[str, str]) -> dict[str, list[str]]:
        return {"to": [payload["to"]]}

    class Plus(Job, kind="deploy.plus", queue="deploys"):
        a: int
        b: int

    class Fresh(Job, kind="deploy.fresh", queue="deploys"): ...

    class Light(Job, kind="deploy.light", queue="deploys", track=False): ...

    @handles(Fresh)
    async def fresh(job: Fresh) -> str:
        return "new"

    @handles(Light)
    async def light(job: Light) -> None:
        raise ValueError("a failure leaves a record of it")

else:

    class Mail(Job, kind="deploy.mail", queue="deploys"):  # type: ignore[no-redef]
        to: str

    class Plus(Job, kind="deploy.plus", queue="deploys"):  # type: ignore[no-redef]
        a: int


class Moved(Job, kind="deploy.moved", queue="deploys"): ...


if NEW:

    @handles(Moved)
    async def moved(job: Moved) -> str:
        return "new"


@handles(Mail)
async def mail(job: Mail) -> str:
    return "new" if NEW else "old"


@handles(Plus)
async def plus(job: Plus) -> str:
    return "new" if NEW else "old"
