"""Prints how long mails with attachments take to send at once, in seconds, and the peak memory of the process, in MiB.

python -m benchmarks.programs.builtin.mails FOLDER MAILS MEGABYTES

The mail server is a process of its own on this machine. The worker has 4 connections, the default.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.programs.builtin import peak_mebibytes
from penstock.config.settings import Settings
from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers.builtin.emails.content.templating import Templates
from penstock.workers.builtin.emails.handler import send_email
from penstock.workers.builtin.emails.transport import open_mailer
from penstock.workers.local.up.redis_server import free_port

MEGABYTE = 1024 * 1024


def serve(port: Connection) -> None:
    from aiosmtpd.controller import Controller
    from aiosmtpd.handlers import Sink

    controller = Controller(Sink(), hostname="127.0.0.1", port=free_port(), data_size_limit=100 * MEGABYTE)
    controller.start()
    port.send(controller.port)
    threading.Event().wait()


def main() -> None:
    folder, mails, megabytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    settings = Settings.model_validate({"smtp_url": f"smtp://127.0.0.1:{ours.recv()}"})
    with (folder / "attachment").open("wb") as file:
        file.truncate(megabytes * MEGABYTE)
    job = SendEmail.model_validate(
        {"to": "ada@example.com", "subject": "x", "text": "x", "attachments": [{"key": "attachment"}]}
    )
    storage, templates, sent = FileStorage(folder), Templates(None), []
    mailers = open_mailer(settings)
    mailer = next(mailers)

    def send() -> None:
        sent.append(send_email(job, Context(job_id=new_id()), mailer, templates, storage, settings))

    threads = [threading.Thread(target=send) for _ in range(mails)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if failed := [result for result in sent if not getattr(result, "accepted", ())] or len(sent) != mails:
        raise SystemExit(f"mails were not sent: {failed!r}")
    mailers.close()
    server.kill()
    print(seconds, peak_mebibytes())


if __name__ == "__main__":
    main()
