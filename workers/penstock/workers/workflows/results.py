"""The results of steps, as JSON, for the steps that take them and for the workflow."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.results import StoredResult
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows.read import fan_out_results, job_results
from penstock.schemas.storage import Storage
from penstock.schemas.workflows import StepState
from penstock.workers.workflows.run import Run


@dataclass(frozen=True, slots=True)
class StepResults:
    """Reads results in the transaction of a batch.

    Arguments:
        open_storage: opens the storage of results that are not in the ledger.
    """

    connection: sa.Connection
    database: Database
    open_storage: Callable[[], Storage]

    def of_steps(self, steps: Iterable[tuple[Run, str]]) -> dict[tuple[str, str], str | None]:
        """(Id of the workflow, name of the step) → JSON; that of a fan-out is a list, in the order of its jobs."""
        results: dict[tuple[str, str], str | None] = {}
        steps_of_job: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for run, step in steps:
            key, row = (run.id, step), run.rows[step]
            if key in results:
                continue
            results[key] = None
            if row.result is not None:
                signal = json.loads(row.result)
                results[key] = json.dumps(signal["answer"] if "answer" in signal else signal["otherwise"])
            elif row.members is not None:
                members = fan_out_results(self.connection, run.id, step)
                results[key] = "[" + ",".join(self._json(job) for job in members) + "]"
            elif row.job_id is not None and row.state == StepState.SUCCEEDED:
                steps_of_job[row.job_id].append(key)
        if steps_of_job:
            for job_id, job in job_results(self.connection, self.database, list(steps_of_job)).items():
                for key in steps_of_job[job_id]:
                    results[key] = self._json(job)
        return results

    def of_workflows(self, runs: Sequence[Run]) -> dict[str, tuple[str | None, str | None]]:
        """Id of the workflow → `result` and `result_ref`: those of its last step."""
        results: dict[str, tuple[str | None, str | None]] = {run.id: (None, None) for run in runs}
        last_jobs: dict[str, str] = {}
        for run in runs:
            row = None if (last := run.definition.last) is None else run.rows[last.name]
            if row is None or row.state != StepState.SUCCEEDED:
                continue
            if row.members is None and row.job_id is not None:
                last_jobs[run.id] = row.job_id
            else:
                results[run.id] = self.of_steps([(run, row.step)])[run.id, row.step], None
        if last_jobs:
            jobs = job_results(self.connection, self.database, list(last_jobs.values()))
            for workflow_id, job_id in last_jobs.items():
                if (job := jobs.get(job_id)) is not None:
                    results[workflow_id] = job.result, job.result_ref
        return results

    def _json(self, job: Any) -> str:
        if job.result_ref is not None:
            return json.dumps(StoredResult(job.result_ref, self.open_storage).value())
        return "null" if job.result is None else str(job.result)
