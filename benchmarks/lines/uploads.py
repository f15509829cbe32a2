"""Uploads: how many large photos a worker's core processes, and the memory that each takes.

Each is a JPEG of a camera's size, with the default settings: a clean copy and thumbnails of 256 and 1024 pixels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from benchmarks.entrants import ROOT
from benchmarks.plan import Plan, say
from benchmarks.tables import Table

SIZES = {"12 MP": (4000, 3000), "48 MP": (8000, 6000), "108 MP": (12000, 9000)}
MOST_MIB = 2048.0
"""The default of `decoder_memory`."""


def photos(plan: Plan) -> list[Table]:
    rate = Table("Photos processed by a worker, one at a time", "photos/min")
    memory = Table("Peak memory of the decoder of a photo", "MiB", more_is_better=False)
    for number in range(plan.rounds):
        for name, (width, height) in SIZES.items():
            say(f"round {number + 1}/{plan.rounds}: {name}")
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "benchmarks.programs.photo", folder, str(width), str(height)]
                printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
            seconds, mebibytes = map(float, printed.split())
            rate.add(name, 60 / seconds, peer=False)
            memory.limits[name] = MOST_MIB
            memory.add(name, mebibytes, peer=False)
    return [rate, memory]
