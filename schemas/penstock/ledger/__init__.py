"""The ledger: the SQL record of jobs, attempts and outcomes, and the truth about them.

All writes of a job's state are in this package, and it never speaks to a broker. `transitions/` is the state machine, a
file for each arrow; `rows/` defines how each thing is written; `queries/` reads.

`__all__` names what programs may use, over a `Database`. Importing this package loads no SQLAlchemy: a name is loaded
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.config.loaded import load_on_use

if TYPE_CHECKING:
    from penstock.ledger.queries import dead_letters
    from penstock.ledger.queries.failure_groups import groups
    from penstock.ledger.queries.results import delete_result
    from penstock.ledger.queries.selection import Selection
    from penstock.ledger.queries.status import JobStatus, read_status
    from penstock.ledger.retention.erasure import Erasure, erase
    from penstock.ledger.rows import audit
    from penstock.ledger.schedules import commands as schedule_commands
    from penstock.ledger.sql.database import Database
    from penstock.ledger.transitions.cancel import cancel_key, request_cancel
    from penstock.ledger.transitions.replay import ReplayResult, discard, replay, retry
    from penstock.ledger.transitions.reschedule import reschedule, reschedule_key
    from penstock.ledger.workflows import commands as workflow_commands

__all__ = [
    "Database",
    "Erasure",
    "JobStatus",
    "ReplayResult",
    "Selection",
    "audit",
    "cancel_key",
    "dead_letters",
    "delete_result",
    "discard",
    "erase",
    "groups",
    "read_status",
    "replay",
    "request_cancel",
    "reschedule",
    "reschedule_key",
    "retry",
    "schedule_commands",
    "workflow_commands",
]

_HOMES = {
    "Database": ".sql.database",
    "Erasure": ".retention.erasure",
    "JobStatus": ".queries.status",
    "ReplayResult": ".transitions.replay",
    "Selection": ".queries.selection",
    "audit": ".rows.audit",
    "cancel_key": ".transitions.cancel",
    "dead_letters": ".queries.dead_letters",
    "delete_result": ".queries.results",
    "discard": ".transitions.replay",
    "erase": ".retention.erasure",
    "groups": ".queries.failure_groups",
    "read_status": ".queries.status",
    "replay": ".transitions.replay",
    "request_cancel": ".transitions.cancel",
    "reschedule": ".transitions.reschedule",
    "reschedule_key": ".transitions.reschedule",
    "retry": ".transitions.replay",
    "schedule_commands": ".schedules.commands",
    "workflow_commands": ".workflows.commands",
}
"""Name → module that defines it."""

__getattr__, __dir__ = load_on_use(
    __name__, _HOMES, modules=("audit", "dead_letters", "schedule_commands", "workflow_commands")
)
