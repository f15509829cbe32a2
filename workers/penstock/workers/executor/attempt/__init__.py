"""An attempt: a run of a job, from its context to its outcome."""
