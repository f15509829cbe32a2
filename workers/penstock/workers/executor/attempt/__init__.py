"""One run of a job, and how it ends."""
