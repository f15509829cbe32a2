"""Virus scan by ClamAV's daemon, and the quarantine.

The protocol is that of clamd(8): `zINSTREAM`, pieces with their length in front, and an empty one.
"""

from __future__ import annotations

import io
import json
import socket
import struct
from pathlib import Path
from urllib.parse import urlsplit

from penstock.producers.storage import CHUNK
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.workers.builtin.uploads.receiving import Received
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage

_TIMEOUT_SECONDS = 120.0
"""For a step of the exchange: clamd answers after it has scanned all."""
_LONGEST_REPLY = 4096


class ScannerUnavailable(ConnectionError):
    """The virus scanner cannot be reached, or broke off; worth another try."""


def scan(path: Path, url: str, ctx: Context) -> str | None:
    """The name of the virus in a file; None: clamd knows none in it.

    Arguments:
        url: `tcp://host:3310` or `unix:/path/of/clamd.ctl`.

    Raises:
        ScannerUnavailable: names the URL.
        Permanent: clamd refuses to scan it, as for a file over its `StreamMaxLength`.
    """
    try:
        with _connected(url) as connection:
            try:
                connection.sendall(b"zINSTREAM\0")
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        ctx.check_cancelled()
                        connection.sendall(struct.pack(">I", len(chunk)) + chunk)
                connection.sendall(struct.pack(">I", 0))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered before the end: the answer says why
            reply = _reply(connection)
    except OSError as error:
        raise ScannerUnavailable(f"clamd at {url} cannot be used: {error}; check `clamd` of [uploads]") from error
    if reply == "stream: OK":
        return None
    if reply.endswith(" FOUND"):
        return reply.removeprefix("stream: ").removesuffix(" FOUND")
    if "size limit exceeded" in reply:
        raise Permanent(
            f"clamd does not scan a file of {path.stat().st_size} bytes: {reply}; raise its StreamMaxLength to "
            "`max_bytes` of [uploads], then replay this job"
        )
    raise ScannerUnavailable(f"clamd at {url} answered {reply[:200]!r}")


def quarantine(
    job: ProcessUpload, ctx: Context, storage: Storage, received: Received, virus: str, folder: str
) -> Permanent:
    """Move an upload with a virus into the quarantine, and return the error that says so.

    Its bytes become `<folder>/<hash>`, next to a `.json` with virus, key and job; then the upload is deleted.
    """
    key = f"{storage.root}{folder}/{received.sha256}"
    note = {"virus": virus, "key": job.key, "job": ctx.job_id, "media_type": received.media_type}
    with received.path.open("rb") as stream:
        storage.write(key, stream, "application/octet-stream")
    storage.write(f"{key}.json", io.BytesIO(json.dumps(note).encode()), "application/json")
    storage.delete(job.key)
    return Permanent(f"{job.key}: has the virus {virus}; it was moved to {key}")


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.connect(parts.path)
        except BaseException:
            connection.close()
            raise
        return connection
    return socket.create_connection((parts.hostname or "localhost", parts.port or 3310), _TIMEOUT_SECONDS)


def _reply(connection: socket.socket) -> str:
    reply = b""
    while not reply.endswith(b"\0") and len(reply) < _LONGEST_REPLY:
        if not (piece := connection.recv(_LONGEST_REPLY)):
            break
        reply += piece
    if not reply:
        raise ConnectionError("it closed the connection without an answer")
    return reply.rstrip(b"\0\n").decode(errors="replace").strip()
