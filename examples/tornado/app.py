"""A Tornado backend that enqueues in its own transaction, and without one."""

from __future__ import annotations

import asyncio
import signal
import sys

from acme.jobs import WriteInvoice
from acme.shop import DATABASE_URL, SECRET, Invoice
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from tornado.web import Application, HTTPError

from penstock.producers import AsyncJobHandle
from penstock.producers.contrib.tornado import Penstock, Traced
from penstock.producers.outbox import Outbox

engine = create_async_engine(DATABASE_URL.replace("sqlite:", "sqlite+aiosqlite:"))
Session = async_sessionmaker(engine)
outbox = Outbox()


class Handler(Traced):
    @property
    def penstock(self) -> Penstock:
        penstock: Penstock = self.settings["penstock"]
        return penstock

    def job(self) -> WriteInvoice:
        try:
            return WriteInvoice.model_validate_json(self.request.body)
        except ValidationError as error:
            raise HTTPError(422, str(error)) from error

    def answer(self, handle: AsyncJobHandle) -> None:
        self.set_status(202)
        self.finish({"job": handle.id, "events": self.penstock.events_path(handle)})


class Invoices(Handler):
    async def post(self) -> None:
        """The invoice and its job are committed together or not at all."""
        job = self.job()
        async with Session() as session:
            session.add(Invoice(number=job.number, customer=job.customer))
            handle = outbox.enqueue(session, job)
            try:
                await session.commit()
            except IntegrityError as error:
                raise HTTPError(409, f"there is an invoice {job.number} already") from error
        self.answer(handle)


class Reprints(Handler):
    async def post(self) -> None:
        """Nothing to commit: straight to the broker."""
        self.answer(await self.penstock.producer.enqueue(self.job()))


async def main(port: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with Penstock(secret=SECRET) as penstock:
        routes = [("/invoices", Invoices), ("/reprints", Reprints), *penstock.handlers("/penstock")]
        server = Application(routes, penstock=penstock).listen(port, "127.0.0.1")
        await stopped.wait()
        server.stop()
        await server.close_all_connections()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
