"""Rows of jobs that wait for something else than their time: a limit, a pause, or a worker that knows them."""
