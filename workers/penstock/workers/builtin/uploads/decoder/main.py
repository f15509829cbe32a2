"""The decoder's process: a request on its standard input, an answer on its standard output."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any

from penstock.workers.builtin.uploads.decoder.messages import Recipe, Refused, Request

_LARGEST_FILE = 2 * 1024**3
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer one request: `{"answer": …}`, `{"refused": reason}`, or `{"memory": true}` past its cap."""
    fields = json.load(sys.stdin)
    parent = fields.pop("parent")
    request = Request(**{**fields, "recipes": [Recipe(**recipe) for recipe in fields["recipes"]]})
    answer: dict[str, Any]
    try:
        process = _load(request)  # before the caps: libraries are not the content's
        _die_with(parent)
        _cap(request)
        answer = {"answer": asdict(process(request))}
    except Refused as refusal:
        answer = {"refused": str(refusal)}
    except MemoryError:
        answer = {"memory": True}
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # libraries' threads need no farewell


def _load(request: Request) -> Any:
    if request.media_type == "application/pdf":
        import pypdf  # noqa: F401

        from penstock.workers.builtin.uploads.decoder import pdf

        return pdf.process
    from penstock.workers.builtin.uploads.decoder import pillow

    return pillow.process


def _die_with(parent: int) -> None:
    """Have the kernel kill this process with the worker's (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)


def _cap(request: Request) -> None:
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    memory = pages * os.sysconf("SC_PAGE_SIZE") + request.memory
    caps = {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_CPU: (request.cpu_seconds, request.cpu_seconds + 5),
        resource.RLIMIT_FSIZE: (_LARGEST_FILE, _LARGEST_FILE),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, (soft, hard) in caps.items():
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))
