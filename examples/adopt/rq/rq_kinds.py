"""The kinds of RQ's jobs, for commands and pages that show what is in them: `--import rq_kinds`."""

from penstock.workers.engines.rq import declare

declare("high", "default")
