"""Decoding in a process of its own, with caps of memory and time: no decoder runs in the worker itself."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from penstock.config.sections.builtin.uploads import UploadsSettings
from penstock.workers.builtin.uploads.decoder.messages import ImageAnswer, PdfAnswer, Recipe, Request
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Permanent

T = TypeVar("T")
log = logging.getLogger("penstock.uploads")

# `penstock.workers.builtin` would import all built-in workers: it takes the place of that package with its path alone.
_START = """
import sys, types
sys.path[:] = sys.argv[2:]
package = types.ModuleType("penstock.workers.builtin")
package.__path__ = [sys.argv[1]]
sys.modules[package.__name__] = package
from penstock.workers.builtin.uploads.decoder.main import main
main()
"""
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "VIPS_CONCURRENCY")
"""Variables that the process sees: none with secrets."""
_LARGEST_ANSWER = 2**20
_LOOK_SECONDS = 0.1
"""Between two looks whether the job was cancelled."""
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS)
_decoding = threading.BoundedSemaphore(os.cpu_count() or 1)
"""More at a time than cores would be no faster, and each may take `decoder_memory`."""


class DecoderFailed(RuntimeError):
    """A decoder ended without an answer, by no fault of the upload that is known."""


def decode_image(
    source: Path, media_type: str, max_pixels: int, recipes: list[Recipe], uploads: UploadsSettings, ctx: Context
) -> ImageAnswer:
    """Decode an image, and write what the recipes ask for. Raises as `read_pdf`."""
    return _checked(ImageAnswer, _run(_request(source, media_type, max_pixels, recipes, uploads), uploads, ctx))


def read_pdf(source: Path, uploads: UploadsSettings, ctx: Context) -> PdfAnswer:
    """Read the structure of a PDF.

    Raises:
        Permanent: it is broken, too large, or needs more memory or time than the settings allow.
        DecoderFailed: the process was killed from outside; worth another try.
        OSError: no process or no room on the disk; worth another try.
    """
    return _checked(PdfAnswer, _run(_request(source, "application/pdf", 0, [], uploads), uploads, ctx))


def _request(
    source: Path, media_type: str, max_pixels: int, recipes: list[Recipe], uploads: UploadsSettings
) -> Request:
    memory, seconds = uploads.decoder_memory, uploads.decoder_seconds
    return Request(str(source), media_type, max_pixels, memory, seconds, recipes)


def _checked(form: type[T], answer: Any) -> T:
    try:
        return TypeAdapter(form).validate_python(answer)
    except ValidationError as error:  # it was taken over
        raise Permanent("the decoder's answer has not the form of an answer: the upload may attack it") from error


def _run(request: Request, uploads: UploadsSettings, ctx: Context) -> Any:
    """The decoder's answer to a request."""
    folder = Path(request.source).parent
    package = str(Path(__file__).parents[1])
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    while not _decoding.acquire(timeout=_LOOK_SECONDS):
        ctx.check_cancelled()
    try:
        with (folder / "answer").open("w+b") as answer, (folder / "log").open("w+b") as errors:
            process = subprocess.Popen(  # noqa: S603  # a program of ours
                [sys.executable, "-I", "-c", _START, package, *sys.path],
                stdin=subprocess.PIPE,
                stdout=answer,
                stderr=errors,
                cwd=folder,
                env={**environment, "TMPDIR": str(folder), "HOME": str(folder)},
            )
            try:
                _send(process, {**asdict(request), "parent": os.getpid()})
                while True:
                    try:
                        code = process.wait(_LOOK_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        ctx.check_cancelled()
            finally:
                process.kill()
                process.wait()
            answer.seek(0)
            errors.seek(0)
            return _read(code, answer.read(_LARGEST_ANSWER), errors.read(_LARGEST_ANSWER), uploads)
    finally:
        _decoding.release()


def _send(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as stream:
            stream.write(json.dumps(request).encode())
    except BrokenPipeError:  # its exit code says why
        pass


def _read(code: int, answer: bytes, errors: bytes, uploads: UploadsSettings) -> Any:
    """The answer of a decoder that has ended."""
    reason = errors.decode(errors="replace").strip()[-2000:]
    if code == -signal.SIGXCPU:
        raise Permanent(
            f"the upload takes more than {uploads.decoder_seconds} s of processor time to decode; decoder_seconds of "
            "[uploads] is the limit"
        )
    if -code in _CRASHES:
        log.warning("a decoder crashed: %s: %s", signal.Signals(-code).name, reason)
        raise Permanent(f"not readable: its decoder crashed ({signal.Signals(-code).name})")
    if code != 0:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = reason.splitlines()[-1] if reason else "no message"
        raise DecoderFailed(f"the decoder ended with {how}: {last}")
    try:
        message = json.loads(answer)
        if message.get("memory"):
            raise Permanent(
                f"the upload takes more than {uploads.decoder_memory} bytes of memory to decode; decoder_memory of "
                "[uploads] is the limit"
            )
        if "refused" in message:
            raise Permanent(str(message["refused"])[:2000])
        return message["answer"]
    except (ValueError, KeyError, AttributeError) as error:
        raise Permanent("the decoder's answer is not JSON: the upload may attack it") from error
