"""Workflows: graphs of jobs with durable state.

`steps` is the vocabulary that authors write them with, `workflow` their base class, and `definition` the graph of a
class. `run` is a workflow in memory, and decides; `advance` advances a batch of them, for the dispatcher's service.
"""

from penstock.workers.workflows.steps import Sleep, Wait, map_over, step
from penstock.workers.workflows.workflow import Workflow

__all__ = ["Sleep", "Wait", "Workflow", "map_over", "step"]
