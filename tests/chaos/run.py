"""`make chaos`: kill, freeze and restart everything in the middle of thousands of jobs, and count the losses."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from chaos_site import FOLDERS  # noqa: E402

sys.path[:0] = map(str, FOLDERS)

from chaos_outbox import one_outbox_round  # noqa: E402
from chaos_schedules import one_schedule_round  # noqa: E402
from chaos_workflows import one_workflow_round  # noqa: E402
from environment import NAMES, QUICK, Pace, run_environment  # noqa: E402
from pairs import PAIRS, ServerMissing, has_postgres, has_rabbitmq, one_round  # noqa: E402

WIPES = 2
OTHERS = {"schedules": one_schedule_round, "workflows": one_workflow_round, "outbox": one_outbox_round}
"""Rounds of something else than a pair: with a seed, a number of jobs, and a folder."""


def main() -> int:
    options = _options()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are stopped
    if options.environment:
        return _environment(options, seed)
    failed = False
    for number in range(options.rounds):
        for pair in (*PAIRS, *OTHERS) if options.pair == "all" else (options.pair,):
            folder = Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
            print(f"{pair}, {options.ledger or options.database}, seed {seed + number}", flush=True)
            ledger = {"database": options.database, "ledger_url": options.ledger}
            try:
                if pair in OTHERS:
                    report = OTHERS[pair](seed + number, options.jobs, folder, **ledger)
                else:
                    report = one_round(
                        pair,
                        seed + number,
                        options.jobs,
                        options.seconds,
                        folder,
                        **ledger,
                        own_rabbitmq=has_rabbitmq(),
                        wipes=WIPES if options.wipe else 0,
                    )
            except ServerMissing as missing:
                print(f"  skipped: {missing}")
                continue
            print("\n".join(report.lines()), flush=True)
            if report.faults:
                failed = True
                again = f"python tests/chaos/run.py --pair {pair} --seed {seed + number} --jobs {options.jobs}"
                again += f" --seconds {options.seconds:g} --database {options.database}"
                again += " --wipe" if options.wipe else ""
                print(f"  again: {again}\n  logs and ledger: {folder}", flush=True)
            else:
                print(f"  nothing lost, nothing repeated, {report.seconds:.0f} s", flush=True)
                if not options.keep:
                    shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _environment(options: argparse.Namespace, seed: int) -> int:
    """The faults of the environment, a row for each."""
    print(f"seed {seed}; a row again: --environment --pair PAIR --fault FAULT --seed {seed}", flush=True)
    rows = run_environment(
        PAIRS if options.pair == "all" else (options.pair,),
        options.fault or NAMES,
        seed,
        QUICK if options.quick else Pace(),
        lambda: Path(tempfile.mkdtemp(prefix="penstock-chaos-")),
        " --quick" if options.quick else "",
    )
    for row, folder in rows:
        if not row.faults and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if any(row.faults for row, _ in rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="repeat this run's first round; random if not given")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each pair, with the seeds that follow")
    parser.add_argument("--quick", action="store_true", help="1,000 jobs in 15 s with SQLite, unless set otherwise")
    parser.add_argument("--jobs", type=int, default=None, help="jobs a round; 10,000 if not given")
    parser.add_argument("--seconds", type=float, default=None, help="how long things break in a round; 60 if not given")
    parser.add_argument("--pair", default="all", choices=("all", *PAIRS, *OTHERS))
    parser.add_argument(
        "--database",
        default=None,
        choices=("postgres", "sqlite"),
        help="the ledger's: a PostgreSQL of the round's own, where it is installed, which is killed too; or SQLite",
    )
    parser.add_argument("--ledger", default=None, help="an empty database of another server, which is left alone")
    parser.add_argument("--wipe", action="store_true", help="the broker loses all it has, too")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and ledger even if all is well")
    parser.add_argument(
        "--environment", action="store_true", help="faults of database, broker and process, one at a time, and handlers"
    )
    parser.add_argument("--fault", action="append", choices=NAMES, help="with --environment: only this one, and others")
    options = parser.parse_args()
    jobs, seconds = (1000, 15.0) if options.quick else (10_000, 60.0)
    options.jobs, options.seconds = options.jobs or jobs, options.seconds or seconds
    if options.database == "postgres" and not has_postgres():
        parser.error("PostgreSQL is not installed here")
    if options.database is None:
        options.database = "postgres" if has_postgres() and not (options.quick or options.ledger) else "sqlite"
    return options


if __name__ == "__main__":
    sys.exit(main())
