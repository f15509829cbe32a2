"""Parts of a worker that every station of a job's way uses."""
