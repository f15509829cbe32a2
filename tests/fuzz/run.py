"""Generated input for everything that reads what strangers wrote: all decoders, and the gateway in its own process.

make fuzz                                # a minute
make fuzz ARGS="--seconds 600 --seed 7"  # ten minutes; the seed of a run that failed repeats it
make fuzz ARGS="--only gateway"          # or words of a target's name
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.gateway import GROWTH, gateway_process
from fuzz.targets import TARGETS

from penstock.workers.local.up.redis_server import RedisServer

EXAMPLES = 100
REQUESTS = 3
"""Of each operation in a round."""


def rounds(seed: int, until: float) -> Iterator[int]:
    """A seed for each round, until a time of the monotonic clock; at least one."""
    generator = random.Random(seed)
    yield generator.getrandbits(64)
    while time.monotonic() < until:
        yield generator.getrandbits(64)


def fuzz_decoder(fuzz: Callable[[int, int], None], seed: int, until: float) -> str:
    count = 0
    for round_seed in rounds(seed, until):
        fuzz(EXAMPLES, round_seed)
        count += 1
    return f"{count * EXAMPLES} inputs"


def fuzz_gateway(seed: int, until: float) -> str:
    """Raises AssertionError for a 5xx, and for a process that grows."""
    with tempfile.TemporaryDirectory() as temporary:
        server = RedisServer(Path(temporary) / "redis")
        server.start()
        try:
            with gateway_process(Path(temporary), server) as gateway:
                gateway.fuzz(REQUESTS, seed)
                before, count = gateway.memory(), 1
                for round_seed in rounds(seed, until):
                    gateway.fuzz(REQUESTS, round_seed)
                    count += 1
                growth = gateway.memory() - before
                assert growth < GROWTH, f"the gateway grew by {growth >> 20} MiB in {count} rounds"
        finally:
            server.stop()
    return f"{count} rounds over all operations, {growth >> 20} MiB more"


def main() -> int:
    """Exit code 1 if something did not hold; the output has the input, shrunk, and the seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of it: half for the gateway")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", default="", help="words of a target's name")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chosen = [target for target in TARGETS if options.only in target.name]
    with_gateway = options.only in "gateway"
    share = options.seconds / max(1, len(chosen)) * (0.5 if with_gateway and chosen else 1)
    failed = []

    def attempt(name: str, fuzz: Callable[[], str]) -> None:
        try:
            print(f"{name}: {fuzz()}", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            failed.append(name)

    for target in chosen:
        end = time.monotonic() + share
        attempt(target.name, lambda target=target, end=end: fuzz_decoder(target.fuzz, options.seed, end))
    if with_gateway:
        end = time.monotonic() + options.seconds * (0.5 if chosen else 1)
        attempt("gateway", lambda: fuzz_gateway(options.seed, end))
    if failed:
        print(f'{", ".join(failed)}: repeat with make fuzz ARGS="--seed {options.seed} …"', file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
