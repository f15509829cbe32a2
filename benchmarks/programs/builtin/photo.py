"""Prints how long an upload of a photo takes, in seconds, and the peak memory of its decoder, in MiB.

python -m benchmarks.programs.builtin.photo FOLDER WIDTH HEIGHT
"""

from __future__ import annotations

import io
import resource
import sys
import time
from pathlib import Path

from PIL import Image

from penstock.config.settings import Settings
from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers.builtin.uploads.handler import process_upload


def main() -> None:
    folder, width, height = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    small = Image.merge("RGB", [Image.effect_noise((width // 8, height // 8), 60) for _ in range(3)])
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    storage = FileStorage(folder)
    storage.write("photo", io.BytesIO(out.getvalue()))
    begin = time.perf_counter()
    process_upload(ProcessUpload(key="photo"), Context(job_id=new_id()), storage, Settings())
    seconds = time.perf_counter() - begin
    print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
