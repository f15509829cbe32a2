"""Workflows: graphs of jobs with durable state.

`writing` has the words they are written with, `workflow` their base class, `definition` what a class says; `running` is
one workflow in memory, `advancing` moves a batch of them on, and `poller` is the dispatcher's service that does so.
"""

from penstock.workers.workflows.steps import Sleep, Wait, map_over, step
from penstock.workers.workflows.workflow import Workflow

__all__ = ["Sleep", "Wait", "Workflow", "map_over", "step"]
