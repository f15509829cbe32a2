"""Prints how long a sync of records takes, in seconds, the first time and when all have changed, and the peak memory of
the process, in MiB.

python -m benchmarks.programs.builtin.sync URL TABLE RECORDS

The API is a process of its own on this machine.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, urlsplit

from benchmarks.programs.builtin import peak_mebibytes
from penstock.config.settings import Settings
from penstock.schemas.builtin.syncs import RunSync, SyncFinished
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.syncs.handler import run_sync

PAGE = 1000


def serve(records: int, port: Connection) -> None:
    """Serve pages of records; those after a cursor that begins with `b` have changed."""

    class Api(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            start, price = int(query.get("cursor", ["0"])[0]), query["price"][0]
            rows = [
                {"id": number, "name": f"record {number}", "price": f"{price}.50", "updated_at": "2026-01-01T00:00:00Z"}
                for number in range(start, min(start + PAGE, records))
            ]
            following = start + PAGE if start + PAGE < records else None
            body = json.dumps({"items": rows, "next_cursor": following}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Api)
    port.send(server.server_address[1])
    server.serve_forever()


def main() -> None:
    url, table, records = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ours, theirs = multiprocessing.Pipe()
    api = multiprocessing.get_context("spawn").Process(target=serve, args=(records, theirs), daemon=True)
    api.start()
    port, databases = ours.recv(), Databases()
    seconds = []
    for price in (1, 2):
        sync = {
            "url": f"http://127.0.0.1:{port}/",
            "params": {"price": price},
            "table": table,
            "columns": {"name": "str", "price": "decimal", "updated_at": "datetime"},
            "updated": "updated_at",
            "updated_param": "since",
        }
        settings = Settings.model_validate({"database_url": url, "syncs": {table: sync}})
        begin = time.perf_counter()
        result = asyncio.run(run_sync(RunSync(sync=table, full=True), Context(job_id=new_id()), databases, settings))
        seconds.append(time.perf_counter() - begin)
        if not isinstance(result, SyncFinished) or result.inserted + result.updated != records:
            raise SystemExit(f"the sync returned {result!r}")
    api.kill()
    databases.close()
    print(*seconds, peak_mebibytes())


if __name__ == "__main__":
    main()
