"""The way of a job through a worker: intake, admission, claiming, limits, attempt, recorder, follow-ups."""
