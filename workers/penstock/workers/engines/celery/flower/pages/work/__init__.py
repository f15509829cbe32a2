"""Pages about work: jobs, dead letters, workflows, schedules."""
