"""A model of the states of jobs, and the processes and people that act on it."""
